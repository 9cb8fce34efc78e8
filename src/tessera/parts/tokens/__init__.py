"""Parts of socket `tokens`: visual tokens -> fewer visual tokens."""
