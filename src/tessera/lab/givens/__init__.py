"""Preconditions of experiments: properties of models or data without which a promise has nothing to act on."""
