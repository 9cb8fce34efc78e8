"""Tessera's own models, as models of transformers: the composed vision-language model and the dual encoder."""
