"""EVE: patch embedding and aligning, the teacher's place, refusals."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tessera.errors import UserError
from tessera.lab.composed import IMAGE, pictures, prefix, tiny
from tessera.parts.couplings.eve import TINY
from tessera.training.stages import factors, sockets_of


def test_the_loss_compares_hidden_states_of_image_tokens_with_the_teacher() -> None:
    model = tiny(TINY).train()
    coupling = model.model.coupling
    ids = torch.tensor([[*prefix(model, 2), 6, 20, 7]])
    images = pictures(2)
    out = model.model(ids, images, output_hidden_states=True)
    places = (ids[0] == IMAGE).nonzero().flatten().view(2, -1)
    wanted = []
    for image in range(2):
        tokens = places[image][1:].view(4, 5)[:, :4].flatten()  # no class token, no row ends
        made = coupling.aligning([out.hidden_states[level][0, tokens] for level in (4, 2, 0)])
        wanted.append(1 - F.cosine_similarity(made, coupling.teacher(images[image : image + 1])[0], dim=-1))
    torch.testing.assert_close(out.coupling_loss, torch.stack(wanted).mean(), rtol=0, atol=1e-6)
    assert model.eval().model(ids, images).coupling_loss is None


def test_the_teacher_never_trains_and_is_not_asked_outside_of_training() -> None:
    model = tiny(TINY)
    sockets = sockets_of(model)
    assert list(sockets) == ["coupling", "teacher", "language_model"]
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    trained = factors(sockets, dict.fromkeys(sockets, 1.0), trainable)
    assert not trained.keys() & {id(p) for p in model.model.coupling.teacher.parameters()}
    model.model.coupling.teacher = None  # would raise if it were asked
    assert model(torch.tensor([[*prefix(model, 1), 6]]), pictures(1)).logits.isfinite().all()


def test_tokens_per_image_and_their_places() -> None:
    model = tiny({**TINY, "teacher": None})
    assert model.tokens_per_image == 4 * 5 + 1 and model.image_size == 32
    tokens = model.encode_images(pictures(1))
    assert tokens.features.shape == (1, 21, 16)
    assert tokens.positions[0, 0].tolist() == [0.5, 0.5] and tokens.positions[0, 5].tolist() == [1.0, 0.125]


def test_nonsense_is_refused() -> None:
    for changes, message in (
        ({"image_size": 30}, "not a multiple of patch_size times window, 8"),
        ({"heads": 5}, "cannot be divided among 5 heads"),
        ({"align": -1.0}, "align cannot be negative"),
        ({"teacher": {"kind": "mlp"}}, "belongs to socket 'connectors'"),
    ):
        with pytest.raises(UserError, match=message):
            tiny({**TINY, **changes})
