"""The one trainer: staged plans, data that depend on the step alone, optimiser, checkpoints, objectives."""
