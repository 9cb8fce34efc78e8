"""Parts of socket `objectives`: a batch and a model -> a loss with named numbers."""
