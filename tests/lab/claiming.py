"""Made-up parts whose claims do what a test wants."""

from __future__ import annotations

HEAD = '''"""{name} is made up.

Source: nobody. Deviations: none. Shapes: none.
"""
from pathlib import Path

from tessera.lab.claim import Finding, claim
from tessera.registry import part

LOG = Path(__file__).with_suffix(".log")


def ran(name):
    with LOG.open("a") as log:
        log.write(name + " ")


@part("{name}", socket="brain"{catalog})
class Toy:
    class Config:
        keep: float = 0.5
'''

EXACT = """

@claim("one [bold] is one", kind="exact")
def is_one(lab):
    ran("is_one")
    return Finding(checks={"equal": True}, measured={"difference": 0.0})
"""

EFFECT = """

@claim("it helps", kind="effect", paper="table 2")
def helps(lab):
    ran("helps")
    return Finding(
        checks={"better": True, "much better": False},
        measured={"accuracy": 1 / 3},
        baseline={"accuracy": 0.5},
        control={"accuracy": 0.1},
        spread={"accuracy": 0.01, "control accuracy": 0.02},
        seeds=lab.seeds,
        note="too little",
    )
"""

CRASH = """

@claim("it falls over", kind="effect")
def falls(lab):
    ran("falls")
    raise ValueError("no\\n  ground")
"""

INTERRUPTED = """

@claim("someone presses Ctrl-C, once", kind="effect")
def waits(lab):
    ran("waits")
    if not LOG.with_suffix(".once").exists():
        LOG.with_suffix(".once").touch()
        raise KeyboardInterrupt
    return Finding(checks={"ended": True})
"""

WRONG = """

@claim("two is one", kind="exact")
def two_is_one(lab):
    return Finding(checks={"equal": False}, measured={"difference": 1.0})
"""
