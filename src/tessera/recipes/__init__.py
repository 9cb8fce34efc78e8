"""Complete training runs: one Python function per recipe, which returns its configuration."""
