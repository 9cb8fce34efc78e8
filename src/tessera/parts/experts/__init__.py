"""Parts of socket `experts`: the visual tokens of several encoders -> one set."""
