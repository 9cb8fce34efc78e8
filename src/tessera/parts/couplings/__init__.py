"""Parts of socket `couplings`: how the language model receives visual tokens."""
