"""What the checks of the contract are called and mean."""

from __future__ import annotations

from collections.abc import Mapping

CHECKS: Mapping[str, str] = {
    "imports": "the part's file can be imported and registers the part",
    "contract": "it derives from a contract of its socket, and can be called as that says",
    "page": "the docstring has shapes and, of a published method, its paper, year, address and deviations",
    "options": "unknown options and wrong types are refused, with the field and the nearest name",
    "claims": "a published method carries an exact claim",
    "builds": "it is built at tiny size and runs",
    "count": "the declared number of tokens is the real one",
    "gradients": "gradients reach every trainable parameter and no frozen one",
    "batch": "a batch of two equals two singles, to 1e-5",
    "padding": "the side on which rows are padded changes nothing, to 1e-5",
    "saving": "what was saved and loaded gives the same bits",
    "identity": "set to do nothing, it changes no bit",
    "undone": "taken out, or done, it has left nothing behind",
    "bf16": "it runs under bfloat16 autocast, and what comes out is finite",
    "meta": "it is built on the meta device, where no number is known",
}


class Unsupported(Exception):
    """The part says that it does not do this; the message is its reason."""
