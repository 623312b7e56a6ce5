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
    assert [spec.label_skew for spec in after] == ["none"] * len(before)
    assert RunFile.model_validate(SPEC).label_skew == "logit_adjustment", "what a new run gets"
    migrate.downgrade(filled, BEFORE)
    assert specs(filled) == before
