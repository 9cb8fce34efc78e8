"""Shared layers and containers that parts build on."""
