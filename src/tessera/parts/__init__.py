"""The parts: one folder per socket, one file or folder per part. Nothing here is imported before the registry is asked for it."""
