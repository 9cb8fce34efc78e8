"""Parts of socket `connectors`: visual tokens -> visual tokens of the language model's width."""
