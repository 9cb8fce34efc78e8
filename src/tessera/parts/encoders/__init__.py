"""Parts of socket `encoders`: pixels -> visual tokens, one set per encoder."""
