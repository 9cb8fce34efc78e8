"""The `tessera` command: the table of commands and the errors in `main.py`, one file per command."""
