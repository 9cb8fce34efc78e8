"""How questions about world samples are packed for training. Plain data, no torch."""

from __future__ import annotations

from dataclasses import field

from tessera.config import config


@config
class Questions:
    """What is asked about a sample, and how often.

    text_tokens: longest text of all questions about a sample together; types: the question types that are asked (none given:
    all); most: most questions about a sample (0: nothing but captions and lists); weights: how much more (or less) often than
    others a type is asked; captions: chances that a sample of one image is also described (short, dense, child), `described`
    that one of several images is; lists: chance that everything in a single image is listed (`tessera.world.lists`), and forms:
    the weights of the lists' forms (none given: each as often; those that a sample does not have are passed over); several:
    shares of batches with pairs and with clips; naming: weight of the loss of `tessera.training.naming`, by which every visual
    token is followed by the name of what it shows, and looks: the share of things and signs that are told by
    their attributes or kind instead.
    """

    text_tokens: int = 128
    captions: tuple[float, float, float] = (0.25, 0.12, 0.05)
    described: float = 0.7
    lists: float = 0.0
    forms: dict[str, float] = field(default_factory=dict)
    types: tuple[str, ...] = ()
    most: int | None = None
    several: tuple[float, float] = (0.14, 0.10)
    weights: dict[str, float] = field(default_factory=dict)
    naming: float = 0.0
    looks: float = 0.0
