"""Claims of the parts in `tessera.parts.experts`."""
