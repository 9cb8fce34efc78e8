"""Parts of socket `grounding`: a model's answer -> boxes with scores."""
