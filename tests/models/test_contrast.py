"""Embeddings, and contrast with the pairs of other processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tessera.models.contrast import Embedded, gathered


def test_pooling_and_padding() -> None:
    some = Embedded(torch.tensor([[[1.0, 3.0], [3.0, 5.0], [9.0, 9.0]]]), torch.tensor([[True, True, False]]))
    assert some.pooled().tolist() == [[2.0, 4.0]]
    both = Embedded.cat([some, Embedded(torch.ones(2, 1, 2), torch.ones(2, 1).bool())])
    assert both.vectors.shape == (3, 3, 2) and both.there.tolist()[1] == [True, False, False]
    assert both.pooled().tolist() == [[2.0, 4.0], [1.0, 1.0], [1.0, 1.0]]
    torch.testing.assert_close(some.unit().vectors.norm(dim=-1), torch.ones(1, 3))


def test_one_process_keeps_its_own() -> None:
    some = Embedded(torch.ones(2, 1, 2), torch.ones(2, 1).bool())
    assert gathered(some) is some


# Everything that both sides of the comparison need; little is imported, as it is imported twice.
PAIRS = """
import torch
from tessera.models.contrast import Embedded, contrastive_loss, gathered

def pairs():
    lots = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(5, length, 6, generator=lots) for length in (1, 6))
    there = torch.arange(6) < torch.tensor([6, 4, 6, 5, 2])[:, None]
    return Embedded(images, torch.ones(5, 1, dtype=torch.bool)), Embedded(texts, there)

def loss_of(images, texts):
    return contrastive_loss(images.pooled() @ texts.pooled().t())
"""
SCRIPT = """
import json, os, sys
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
rows, longest = (slice(0, 3), 6) if rank == 0 else (slice(3, 5), 5)
images, texts = pairs()
mine = Embedded(images.vectors[rows].clone().requires_grad_(), images.there[rows])
words = Embedded(texts.vectors[rows, :longest].clone().requires_grad_(), texts.there[rows, :longest])
loss = loss_of(gathered(mine), gathered(words))
loss.backward()
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump([loss.item(), (mine.vectors.grad / 2).tolist(), (words.vectors.grad / 2).tolist()], file)
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.slow
def test_two_processes_contrast_with_each_others_pairs(tmp_path: Path, subprocess_env: dict[str, str]) -> None:
    """Unequal shares, texts of unequal length: the loss is that of the whole batch, and so is the mean of the gradients."""
    known: dict[str, object] = {}
    exec(PAIRS, known)
    images, texts = known["pairs"]()
    for side in (images, texts):
        side.vectors.requires_grad_()
    loss = known["loss_of"](images, texts)
    loss.backward()
    command = [sys.executable, "-W", "error", "-c", PAIRS + SCRIPT]
    running = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=subprocess_env) for rank in (0, 1)]
    try:
        assert [process.wait(timeout=300) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0][0] == pytest.approx(loss.item(), abs=1e-6) == found[1][0]
    torch.testing.assert_close(torch.tensor(found[0][1] + found[1][1]), images.vectors.grad, atol=1e-6, rtol=1e-5)
    words = [torch.nn.functional.pad(torch.tensor(rows[2]), (0, 0, 0, room)) for rows, room in zip(found, (0, 1), strict=True)]
    torch.testing.assert_close(torch.cat(words), texts.vectors.grad, atol=1e-6, rtol=1e-5)
