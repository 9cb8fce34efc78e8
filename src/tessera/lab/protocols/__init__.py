"""How experiments are run: one protocol a file, named, versioned, each with a golden micro-run by which a change is noticed."""
