"""Adapters of model families: one small file each, found by their registration."""
