"""How long a test waits for another process or thread before it calls it stuck."""

SECONDS = 600.0
"""No test that passes waits so long: it goes on as soon as what it waits for has happened, on however slow or busy a machine."""
