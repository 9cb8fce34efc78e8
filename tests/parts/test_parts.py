"""Couplings in a whole model, and parts that a composed model is not built from; contracts are held by `tests/contract`."""

from __future__ import annotations

import pytest
import torch

from tessera import registry
from tessera.errors import UserError
from tessera.lab.claims import part_module
from tessera.models.parts import buildable, normalise


@pytest.mark.contract
@pytest.mark.parametrize("name", buildable("couplings"))
def test_couplings_in_a_whole_model(name: str) -> None:
    from tessera.lab.composed import pictures, prefix, tiny

    model = tiny({"kind": name, **getattr(part_module(registry.get("couplings", name)), "TINY", {})}).train()
    ids = torch.tensor([[*prefix(model, 1), 6, 20, 7], [*prefix(model, 1), 6, 21, 7]])
    features = model.get_image_features(pictures(2))
    assert features.shape[0] == 2 and features.shape[2] == 32
    embeddings = model.get_input_embeddings()(ids)
    assert model.model.coupling(embeddings, ids == 4, features).shape == embeddings.shape
    model(ids, pictures(2), labels=ids.masked_fill(ids == 4, -100)).loss.backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    sockets = model.sockets()
    assert "coupling" in sockets and list(sockets)[-1] == "language_model"
    assert {id(p) for m in sockets.values() for p in m.parameters()} == {id(p) for p in model.parameters()}


def test_duplicates_unknown_and_misplaced_parts_are_refused() -> None:
    with pytest.raises(UserError, match="'conv_vits'. Did you mean 'conv_vit'"):
        registry.get("encoders", "conv_vits")
    with pytest.raises(UserError, match="belongs to socket 'connectors'"):
        registry.get("encoders", "mlp")


def test_parts_of_hosts_are_no_parts_of_composed_models() -> None:
    assert "fopru" not in buildable("tokens") and "pixel_shuffle" in buildable("tokens")
    with pytest.raises(
        UserError, match=r"parts\.tokens\.kind: 'fopru' plugs into a finished model, tessera\.plug\(model, 'fopru'\)"
    ):
        normalise({"tokens": {"kind": "fopru"}})
    with pytest.raises(UserError, match=r"must be text, not None\. Parts: identity, pixel_shuffle\."):
        normalise({"tokens": {}})
