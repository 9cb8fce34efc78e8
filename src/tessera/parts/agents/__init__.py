"""Parts of socket `agents`: a model with tools in place of the model alone."""
