"""The built-in world: rendered scenes with complete ground truth, questions and captions. No download, no torch."""

from tessera.world.dataset import Sample, World, WorldConfig
from tessera.world.scene import Question, Scene, Thing, Truth

__all__ = ["Question", "Sample", "Scene", "Thing", "Truth", "World", "WorldConfig"]
