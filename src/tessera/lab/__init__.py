"""Experiments about what papers claim: protocols that measure, one judge, evidence with its history, the catalogue."""
