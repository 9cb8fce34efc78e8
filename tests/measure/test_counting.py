"""The host to count on, and what is counted."""

from __future__ import annotations

import torch

from tessera.measure.counting import flops
from tessera.measure.llava import Shape, host, inputs

SMALL = Shape(layers=2, width=64, intermediate=96, heads=1, patches=3, tower_layers=1, tower_width=64, text_tokens=6)


def test_a_matrix_product_takes_two_operations_a_term() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_the_host_reads_its_prompt_and_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    model, prompt = host(SMALL), inputs(SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.inference_mode():
        assert model(**prompt).logits.shape[1] == SMALL.patches**2 + SMALL.text_tokens
