"""Parts of socket `decoding`: they change the logits, or the attention, of every step of a generation."""
