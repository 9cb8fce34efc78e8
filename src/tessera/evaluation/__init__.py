"""Measuring models on the world: questions balanced over types, scores, intervals, the report, the model card."""
