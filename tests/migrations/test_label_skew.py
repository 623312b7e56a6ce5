"""A run that was there before classifiers allowed for label skew goes on with the loss that it has."""

import json
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from fedcybgd.coordinator.db import migrate
from fedcybgd.coordinator.domain.run_file import RunFile
from tests.migrations.test_delta_patches import SPEC, specs
from tests.migrations.test_manifests import filled  # noqa: F401

BEFORE = "0022"


def test_runs_that_there_are_go_on_with_their_loss(filled: Engine) -> None:  # noqa: F811
    migrate.upgrade(filled, BEFORE)
    before = specs(filled)
    assert before
    migrate.upgrade(filled)
    after = [RunFile.model_validate(spec) for spec in specs(filled)]
    assert [(spec.label_skew, spec.head_average) for spec in after] == [("none", "damped")] * len(before)
    new = RunFile.model_validate(SPEC)
    assert (new.label_skew, new.head_average) == ("smoothed", "by_label"), "what a new run gets"
    migrate.downgrade(filled, BEFORE)
    assert specs(filled) == before


@pytest.mark.parametrize(
    ("task", "train", "after"),
    [
        ({"kind": "image-classification", "labels": 2}, None, "logit_adjustment"), ({"kind": "causal-lm"}, {"steps": 3}, "none"),
        ({"kind": "text-classification", "labels": 2}, {"label_skew": None, "steps": 3}, "logit_adjustment"),
        ({"kind": "text-classification", "labels": 2}, {"label_skew": "mask"}, "mask"),
    ],
)  # fmt: skip
def test_runs_that_left_the_loss_to_its_default_go_on_with_what_that_was(
    filled: Engine,  # noqa: F811
    task: dict[str, Any],
    train: dict[str, Any] | None,
    after: str,
) -> None:
    migrate.upgrade(filled, "0035")
    spec = {"name": "r", "model": "m", "task": task} | ({} if train is None else {"train": train})
    with filled.begin() as connection:
        connection.execute(sa.text("UPDATE run SET spec = :spec"), {"spec": json.dumps(spec)})
    migrate.upgrade(filled)
    assert [RunFile.model_validate(spec).label_skew for spec in specs(filled)] == [after]
