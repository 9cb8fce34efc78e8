"""Parts of socket `tuning`: a model -> the same model with new parameters that change nothing at first."""
