"""Answers: decoding loops, sampling, sessions and agents, for hosts and for our own models. Stands on `tessera.hosts`."""
