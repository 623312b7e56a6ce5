"""A run that was there before a field of the run file was goes on as it did."""

import json

import sqlalchemy as sa
from sqlalchemy import Engine

from fedcybgd.coordinator.db import migrate
from fedcybgd.coordinator.domain.run_file import RunFile
from tests.migrations.test_manifests import filled  # noqa: F401

SPEC = {"name": "r", "model": "m", "task": {"kind": "text-classification", "labels": 2, "max_length": 8}}


def specs(engine: Engine) -> list[dict[str, object]]:
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT spec FROM run")).scalars().all()
    return [json.loads(spec) if isinstance(spec, str) else spec for spec in found]


def test_runs_that_there_are_go_on_handing_deltas_on(filled: Engine) -> None:  # noqa: F811
    before = specs(filled)
    assert before
    migrate.upgrade(filled)
    after = specs(filled)
    assert [spec["compression"]["delta_patches"] for spec in after] == [True] * len(before)  # type: ignore[index]
    assert RunFile.model_validate(SPEC).compression.delta_patches is False
    migrate.downgrade(filled, "0015")
    assert specs(filled) == before
