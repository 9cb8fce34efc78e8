"""Costs: times taken in turns, counted operations, and the host that both are taken on."""
