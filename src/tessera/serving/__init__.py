"""The server: the OpenAI chat completions protocol over one model. Needs the extra `serve`; imported by `tessera serve` only."""
