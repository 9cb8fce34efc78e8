"""Parts of socket `compression`: models -> one with fewer, smaller or merged weights."""
