from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.small import made, small

import tessera
from tessera.errors import TesseraError, UserError
from tessera.hosts.tiny_configs import IMAGE, VIDEO
from tessera.hosts.zoo import tiny
from tessera.parts.tuning.arcana import Arcana
from tessera.training.objective import Subject

RANKS = {"rank_visual": 2, "rank_text": 3, "dropout": 0.0}


@pytest.fixture
def host() -> Any:
    return tiny("llava")


def logits(host: Any, **changes: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = host.model(**{**host.inputs((1, 1)), **changes}).logits
    return found


def test_at_the_start_nothing_changes_and_afterwards_nothing_is_left(host: Any) -> None:
    bare = logits(host)
    tuning = Arcana(Arcana.Config(**RANKS))
    before = dict(host.model.named_modules()).keys()
    pairs = tuning.put_in(host.model)
    assert torch.equal(logits(host), bare)
    for parameter in pairs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert not torch.equal(logits(host), bare)
    with tuning.off():
        assert torch.equal(logits(host), bare)
    tuning.take_out()
    assert torch.equal(logits(host), bare) and dict(host.model.named_modules()).keys() == before


def test_adapters_meet_the_tokens_of_their_modality_only(host: Any) -> None:
    """A layer is watched: what is added to visual tokens is the visual product, to all others the textual one."""
    tuning = Arcana(Arcana.Config(**RANKS, layers=("q_proj",), spread=0.5))
    seen: dict[str, torch.Tensor] = {}
    with tessera.plug(host.model, tuning) as plugged:
        linear = plugged.layers[0].self_attn.q_proj
        watching = linear.register_forward_hook(lambda m, args, out: seen.update(x=args[0], out=out))
        logits(host)
        watching.remove()
        visual = plugged.visual_at(0)
        assert visual is not None and visual.any() and not visual.all()
        pair = tuning.pairs["0/self_attn/q_proj"]  # type: ignore[index]
        base = torch.nn.functional.linear(seen["x"], linear.weight, linear.bias)
        for name, mask in (("visual", visual), ("text", ~visual)):
            wanted = base[mask] + pair.branch(name, seen["x"][mask])  # type: ignore[operator, union-attr]
            torch.testing.assert_close(seen["out"][mask], wanted)
    assert tuning.pairs is not None and len(tuning.pairs) == len(plugged.layers)


def test_generation_with_cache_equals_without(host: Any) -> None:
    with tessera.plug(host.model, Arcana(Arcana.Config(**RANKS, spread=0.3))):
        said = [
            host.model.generate(
                **host.inputs((1, 1)), max_new_tokens=4, do_sample=False, use_cache=cache, suppress_tokens=[IMAGE, VIDEO]
            )
            for cache in (True, False)
        ]
    assert torch.equal(*said)


def test_training_leaves_the_models_own_weights(tmp_path: Path) -> None:
    model, processor = made(small())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    subject = Subject(model, tuning=Arcana(Arcana.Config(**RANKS)))
    assert "tuning" in subject.sockets()
    ids = torch.tensor([processor.prefix_ids(1) + processor.question_ids("Is there a dog?") + processor.answer_ids("yes")])
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < ids.shape[1] - 2, -100)
    inputs = {"input_ids": ids, "labels": labels, "pixel_values": torch.rand(1, 3, 64, 64)}
    assert subject.tuning is not None
    optimizer = torch.optim.AdamW(subject.tuning.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = subject(**inputs).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    blind = torch.tensor([processor.prefix_ids(0) + processor.question_ids("Is there a dog?") + processor.answer_ids("yes")])
    model.zero_grad()
    subject(input_ids=blind, labels=blind).loss.backward()
    for name, parameter in subject.tuning.named_parameters():
        if "visual" in name:
            assert parameter.grad is not None and not parameter.grad.any(), name
    assert any(p.grad is not None and p.grad.any() for n, p in subject.tuning.named_parameters() if "text" in n)


def test_saved_adapters_come_back(host: Any, tmp_path: Path) -> None:
    tuning = Arcana(Arcana.Config(**RANKS, scale=1.5, spread=0.4))
    with pytest.raises(UserError, match="not been put"):
        tuning.save(tmp_path / "none")
    with tessera.plug(host.model, tuning):
        wanted = logits(host)
        folder = tuning.save(tmp_path / "adapters")
    with tessera.plug(host.model, "arcana", adapters=str(folder)):
        assert torch.equal(logits(host), wanted)
    with pytest.raises(UserError, match="larger"), tessera.plug(host.model, "arcana", adapters=str(folder), layers=("q_proj",)):
        pass
    few = Arcana(Arcana.Config(**RANKS, layers=("q_proj",)))
    with tessera.plug(host.model, few):
        less = few.save(tmp_path / "few")
    with pytest.raises(UserError, match="not among them"), tessera.plug(host.model, "arcana", adapters=str(less)):
        pass
    with pytest.raises(UserError, match="holds no adapters"), tessera.plug(host.model, "arcana", adapters=str(tmp_path)):
        pass


def test_merging_folds_text_and_keeps_what_is_said() -> None:
    host = tiny("llava")
    tuning = Arcana(Arcana.Config(**RANKS, spread=0.3))
    with tessera.plug(host.model, tuning):
        wanted = logits(host)
        tuning.merge()
        torch.testing.assert_close(logits(host), wanted, rtol=1e-4, atol=1e-4)
        assert tuning.pairs is not None
        assert all(not p.numel() for n, p in tuning.pairs.named_parameters() if "text" in n)
        with pytest.raises(TesseraError, match="merged"):
            tuning.merge()
        with pytest.raises(UserError, match="merged"):
            tuning.save("nowhere")


def test_a_shared_mask_is_plain_lora_and_a_random_one_another_thing(host: Any) -> None:
    said = {}
    for mask in ("modality", "shared", "random"):
        with tessera.plug(host.model, Arcana(Arcana.Config(**RANKS, mask=mask, spread=0.4))) as plugged:
            said[mask] = logits(host)
            assert torch.equal(said[mask], logits(host))
            pairs = plugged.parts[0].pairs  # type: ignore[attr-defined]
            assert sum(p.numel() for p in pairs.parameters()) > 0
    assert not torch.equal(said["modality"], said["random"]) and not torch.equal(said["modality"], said["shared"])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_a_shared_mask_is_the_lora_of_peft(host: Any) -> None:
    peft = pytest.importorskip("peft")
    tuning = Arcana(Arcana.Config(**RANKS, scale=1.5, spread=0.5, mask="shared", layers=("q_proj", "down_proj")))
    with tessera.plug(host.model, tuning) as plugged:
        names = {f"{n}/{name.replace('.', '/')}": m for n, each in enumerate(plugged.layers) for name, m in each.named_modules()}
        wanted = logits(host)
    assert tuning.pairs is not None
    paths = {module: name for name, module in host.model.named_modules()}
    targets = {paths[names[key]]: pair for key, pair in tuning.pairs.items()}
    # Its alpha stands for the scale times the rank.
    adapted = peft.get_peft_model(host.model, peft.LoraConfig(r=5, lora_alpha=7.5, target_modules=list(targets)))
    assert not torch.allclose(logits(host), wanted)
    for path, pair in targets.items():
        lora = adapted.get_base_model().get_submodule(path)
        lora.lora_A.default.weight.data.copy_(pair.text_down)
        lora.lora_B.default.weight.data.copy_(pair.text_up)
    torch.testing.assert_close(logits(host), wanted)


def test_it_goes_with_a_part_that_drops_tokens(host: Any) -> None:
    from tessera.hosts.plug import part_named

    with tessera.plug(host.model, part_named("fopru", {"keep": 0.5}), Arcana(Arcana.Config(**RANKS))):
        zero = logits(host)
    with tessera.plug(host.model, "fopru", keep=0.5):
        assert torch.equal(logits(host), zero)


def test_dropout_works_in_training_mode_only(host: Any) -> None:
    tuning = Arcana(Arcana.Config(rank_visual=2, rank_text=3, dropout=0.5, spread=0.4))
    with tessera.plug(host.model, tuning):
        assert torch.equal(logits(host), logits(host))
        assert tuning.pairs is not None
        tuning.pairs.train()
        assert not torch.equal(logits(host), logits(host))


def test_what_does_not_fit_is_refused(host: Any) -> None:
    with pytest.raises(UserError, match="q_projj"), tessera.plug(host.model, "arcana", layers=("q_projj",)):
        pass
    with pytest.raises(UserError, match="rank"), tessera.plug(host.model, "arcana", rank_visual=0, rank_text=0):
        pass
    tuning = Arcana(Arcana.Config(**RANKS))
    tuning.put_in(host.model)
    with pytest.raises(UserError, match="already"):
        tuning.put_in(host.model)
    tuning.take_out()
