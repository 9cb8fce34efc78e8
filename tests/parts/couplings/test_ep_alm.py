"""eP-ALM: one token inserted inside the language model, the prompt, refusals."""

from __future__ import annotations

import pytest
import torch

from tessera.claims.couplings.ep_alm import inserted
from tessera.errors import UserError
from tessera.lab.composed import pictures, prefix, tiny
from tessera.parts.couplings.ep_alm import TINY, without


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_both_kinds_of_masks_hide_the_token(attention: str) -> None:
    model = tiny({**TINY, "shared": False, "prompt_mlp": False})
    ids = torch.tensor([[*prefix(model, 1), 6, 20, 21, 7]])
    with torch.no_grad():
        expected, _ = inserted(model, ids[0], pictures(1))
    model.set_attn_implementation(attention)
    torch.testing.assert_close(model(ids, pictures(1)).logits[0], expected, rtol=0, atol=1e-5)


def test_levels_are_spread_over_the_layers_and_the_deepest_stays() -> None:
    coupling = tiny({**TINY, "start": 0, "end": 4}).model.coupling
    assert [coupling.level_at(i) for i in range(5)] == [0, 0, 1, 1, None]
    coupling = tiny({**TINY, "start": 1, "end": 4}).model.coupling
    assert [coupling.level_at(i) for i in range(5)] == [None, 0, 1, 1, None]


def test_hidden_keys_are_seen_by_themselves_only() -> None:
    hidden = torch.tensor([[False, True, False]])
    whole = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    expected = torch.tensor([[True, False, False], [True, True, False], [True, False, True]])
    assert torch.equal(without(whole, hidden, 0)[0, 0], expected)
    added = torch.zeros(1, 1, 3, 3).masked_fill(~whole, torch.finfo(torch.float32).min)
    assert torch.equal(without(added, hidden, 0)[0, 0] == 0, expected)
    with pytest.raises(UserError, match="attention_mask"):
        without(None, hidden, 0)


def test_the_prompt_may_go_through_an_mlp_and_only_the_coupling_has_new_weights() -> None:
    model = tiny({**TINY, "prompt": 3, "prompt_mlp": True})
    assert model.tokens_per_image == 4
    names = {name.split(".")[0] for name, _ in model.model.coupling.named_parameters()}
    assert names == {"projection", "prompt", "prompt_mlp"}
    assert tiny({**TINY, "prompt": 0}).tokens_per_image == 1


def test_nonsense_is_refused() -> None:
    for changes, message in (
        ({"levels": 9}, "9 levels are wanted, the encoders have"),
        ({"start": 3, "end": 3}, "start is 3, end 3"),
        ({"start": 3, "end": 4}, "2 levels need as many layers"),
        ({"levels": 0}, "at least 1 level"),
    ):
        with pytest.raises(UserError, match=message):
            tiny({**TINY, **changes})
