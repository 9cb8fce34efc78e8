"""Claims of the parts in `tessera.parts.couplings`."""
