"""Benchmarks of speed and memory against plain transformers code: what `tessera bench` runs."""
