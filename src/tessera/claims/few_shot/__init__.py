"""Claims of the parts in `tessera.parts.few_shot`."""
