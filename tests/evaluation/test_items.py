"""Drawing questions until every type has its share."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tessera.errors import UserError
from tessera.evaluation.items import EvaluationConfig, Item, draw, fingerprint
from tessera.world import World, WorldConfig
from tessera.world.questions import TYPES


def counts(items: list[Item]) -> Counter[str]:
    return Counter(q.type for item in items for q in item.questions)


def test_every_type_is_asked_equally_often(items: list[Item], config: EvaluationConfig) -> None:
    assert counts(items) == dict.fromkeys(TYPES, config.per_type)
    assert config.per_type * len(TYPES) >= config.n


def test_the_same_config_draws_the_same_questions(items: list[Item], config: EvaluationConfig) -> None:
    again = draw(config)
    assert fingerprint(again) == fingerprint(items)
    assert [i.questions for i in again] == [i.questions for i in items]


def test_another_seed_draws_others(items: list[Item], config: EvaluationConfig) -> None:
    other = draw(replace(config, seed=1))
    assert fingerprint(other) != fingerprint(items)
    assert not {i.sample.index for i in other} & {i.sample.index for i in items}


def test_questions_about_one_sample_stay_together(items: list[Item]) -> None:
    assert len({(i.sample.index, i.sample.kind) for i in items}) == len(items)
    assert sum(len(i.questions) for i in items) > 2 * len(items)


def test_a_sample_is_found_again_by_index_and_kind(items: list[Item], config: EvaluationConfig) -> None:
    world = World(config.world)
    for item in items:
        assert world.sample(item.sample.index, item.sample.kind).frames == item.sample.frames


def test_only_the_types_named_are_asked() -> None:
    assert counts(draw(EvaluationConfig(n=9, types=("reading", "order")))) == {"reading": 5, "order": 5}


def test_what_the_world_does_not_hold_is_left_out() -> None:
    charts = EvaluationConfig(world=WorldConfig(split="test", kinds={"chart": 1.0}), n=36)
    assert counts(draw(charts)) == {"chart": 2, "attribute": 2}


def test_a_type_named_that_the_world_does_not_hold_is_an_error() -> None:
    config = EvaluationConfig(world=WorldConfig(kinds={"chart": 1.0}), types=("order", "chart"))
    with pytest.raises(UserError, match="chart.* no questions of type order"):
        draw(config)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (EvaluationConfig(types=("counting",)), "unknown question type 'counting'. Did you mean 'count'"),
        (EvaluationConfig(n=0), "evaluation.n is 0; at least 1"),
        (EvaluationConfig(seed=-1), "evaluation.seed is -1"),
        (EvaluationConfig(world=WorldConfig(split="dev")), "unknown split 'dev'"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(config: EvaluationConfig, says: str) -> None:
    with pytest.raises(UserError, match=says):
        draw(config)
