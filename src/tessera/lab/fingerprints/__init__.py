"""Fingerprints: what parts, protocols and the core do, computed on fixed small inputs."""
