"""A run that was there before classifiers allowed for label skew goes on with the loss that it has."""

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
    assert (new.label_skew, new.head_average) == ("logit_adjustment", "by_label"), "what a new run gets"
    migrate.downgrade(filled, BEFORE)
    assert specs(filled) == before
