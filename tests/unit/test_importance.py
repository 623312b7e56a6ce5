"""Importance is the length of the real model's gradient, block by block; cycles go by it, and by the order of the model where it is not known."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from benchmarks.reading import Reading
from fedcybgd.coordinator.db.base import Base, Database, utcnow
from fedcybgd.coordinator.db.models import Block, Event, Job
from fedcybgd.coordinator.domain.jobs.measurements import ImportancePayload, ImportanceResult
from fedcybgd.coordinator.domain.methods.block_cycle import BlockCycle
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.domain.schedule import cycle_order
from fedcybgd.coordinator.domain.verification import ImportanceUnlike, RoundFacts, RoundInvalid, check_order
from fedcybgd.coordinator.engine.fidelity import NotMeasurable
from fedcybgd.coordinator.engine.importance import importance
from fedcybgd.coordinator.jobs.recomputing import remeasure
from fedcybgd.coordinator.services import outcomes
from fedcybgd.coordinator.services.records import job_leases
from fedcybgd.shared.models.assembly import names_by_canonical
from fedcybgd.shared.models.batches import forward_logits, loss_sum
from tests.support.measured import Measured
from tests.support.story import HELD_OUT, Story, stage
from tests.unit.test_run_file import SMALLEST, problems

ROWS, _ = HELD_OUT
SCORED = "evaluate: {held_out: rows.csv}\n"
BLOCKS = ["embeddings", "layers.0", "layers.1", "layers.2"]


def measure(measured: Measured, visited: list[str]) -> ImportanceResult:
    return importance(measured.store, ImportancePayload.model_validate(measured.payload() | {"visited": visited}))


@pytest.mark.parametrize("family", ["bert", "llama-tied"])
def test_it_is_the_norm_of_the_gradient_of_the_mean_loss(family: str, tmp_path: Path) -> None:
    from fedcybgd.coordinator.engine.calibration import CalibrationRows

    measured = Measured(family, tmp_path)
    rows = CalibrationRows(measured.store, ImportancePayload.model_validate(measured.payload() | {"visited": []}))
    total, count = 0.0, 0
    for batch in rows.batches():
        loss, predictions = loss_sum(forward_logits(measured.model, batch), batch, measured.task)
        loss.backward()
        total, count = total + float(loss.detach()), count + predictions
    names = names_by_canonical(measured.model)
    gradients = {s.name: [measured.model.get_parameter(names[t.name]).grad for t in s.tensors if t.is_parameter] for s in measured.specs}
    expected = {name: sum(float(g.double().square().sum()) for g in own if g is not None) ** 0.5 / count for name, own in gradients.items()}
    visited = [name for name in expected if expected[name] > 0]
    found = measure(measured, visited).importance
    assert found == pytest.approx({name: expected[name] for name in visited}, rel=1e-3)
    assert len(set(found.values())) > 3


def test_what_has_no_gradient_is_not_measurable(tmp_path: Path) -> None:
    measured = Measured("llama-untied", tmp_path)
    from fedcybgd.shared.models.assembly import read_shard

    broken = {name: t * float("nan") for name, t in read_shard(measured.store.path(measured.blocks[1].digest)).items()}
    measured.blocks[1] = measured.shard("layers.0", broken)
    with pytest.raises(NotMeasurable, match=r"layers\.1"):
        measure(measured, ["layers.1"])


def spec(**schedule: Any) -> RunFile:
    values = {"name": "r", "model": "m", "task": {"kind": "causal-lm"}, "evaluate": {"held_out": "rows.csv"}}
    return RunFile.model_validate(values | {"schedule": {"order": "importance", **schedule}})


def test_a_cycle_goes_by_it_and_what_is_not_ranked_follows_in_the_order_of_the_model() -> None:
    assert cycle_order(spec(), BLOCKS, 3, ["layers.2", "embeddings"]) == ["layers.2", "embeddings", "layers.0", "layers.1"]
    assert cycle_order(spec(), BLOCKS, 3) == BLOCKS


def test_agents_are_by_the_order_of_the_model_as_ever_and_the_judge_reads_the_same() -> None:
    known = dict(zip(BLOCKS, (1.0, 3.0, 2.0, 3.0), strict=True))
    ranking = ["layers.0", "layers.2", "layers.1", "embeddings"]
    run = spec(cycles=2, wave=2)
    values = {"task": {"kind": "causal-lm"}, "schedule": {"order": "importance", "cycles": 2, "wave": 2}}
    for number in range(4):
        seats = BlockCycle().seats(run, BLOCKS, ["a", "b", "c", "d"], number, (), ranking)
        plain = {
            s.block: s.agent
            for n in range(4)
            for s in BlockCycle().seats(run, BLOCKS, ["a", "b", "c", "d"], n, ())
            if s.cycle == seats[0].cycle
        }
        assert [seat.agent for seat in seats] == [plain[seat.block] for seat in seats]
        assert [seat.block for seat in seats] == [order.block for order in Reading(values).round(BLOCKS, 4, number, known)]


@pytest.mark.parametrize("more", ["", SCORED + "compression: {calibration_rows: 0}\n"])
def test_it_needs_held_out_rows(more: str) -> None:
    [(_, field, message)] = problems(SMALLEST + more + "schedule: {order: importance}")
    assert field == "schedule.order"
    assert "give `evaluate`, and `compression.calibration_rows` above 0" in message


# ---- verified --------------------------------------------------------------------------------------------------------


def test_it_is_measured_again_and_another_number_is_named(tmp_path: Path) -> None:
    measured = Measured("bert", tmp_path)
    visited = ["layers.0", "layers.1"]
    payload = ImportancePayload.model_validate(measured.payload() | {"visited": visited})
    known = importance(measured.store, payload).importance
    assert remeasure(measured.store, payload, known)
    with pytest.raises(ImportanceUnlike, match=r"layers\.1"):
        remeasure(measured.store, payload, known | {"layers.1": known["layers.1"] * 1.01})
    gone = payload.model_copy(update={"held_out": payload.held_out.model_copy(update={"digest": "0" * 64})})
    assert not remeasure(measured.store, gone, {"layers.1": 0.0}), "of what is gone nothing can be said"


def test_rounds_that_go_by_another_order_are_named() -> None:
    def rounds(*blocks: str) -> list[RoundFacts]:
        return [RoundFacts(number, "closed", 1, number // 2, [name]) for number, name in enumerate(blocks)]

    check_order(rounds("layers.1", "layers.0", "layers.1", "layers.0"), ["layers.1", "layers.0"])
    check_order(rounds("layers.0", "layers.1"), [])
    with pytest.raises(RoundInvalid, match=r"cycle 1 visits layers\.0, layers\.1"):
        check_order(rounds("layers.1", "layers.0", "layers.0", "layers.1"), ["layers.1", "layers.0"])


# ---- measured before the run begins -----------------------------------------------------------------------------------

VALUES = {
    "name": "story", "model": "small", "task": {"kind": "causal-lm", "max_length": 16}, "train": {"steps": 4},
    "schedule": {"order": "importance", "blocks": ["layers"]}, "evaluate": {"held_out": "rows.csv", "digest": ROWS},
}  # fmt: skip


class Told(Story):
    """A run whose importance is measured, or is not."""

    fails = False

    def _finish(self, job: Job) -> None:
        if job.kind == "importance" and self.fails:
            outcomes.fail(self.session, job_leases.hold_of(job), "not_measurable", "there is none", utcnow())
        else:
            super()._finish(job)
        if job.kind == "importance":
            known = self.session.execute(select(Block.name, Block.importance).where(Block.importance.is_not(None))).all()
            self._say("kept", sorted(map(list, known)))
            said = select(Event.level, Event.message).where(Event.code.in_(["importance_measured", "not_measurable"]))
            self._say("event", [list(row) for row in self.session.execute(said).all()])


class Untold(Told):
    fails = True


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    Base.metadata.create_all(database.engine)
    stage(database)
    yield database
    database.close()


def blocks_of(story: Story) -> list[str]:
    """The blocks of the first cycle, as agents were given them."""
    return [json.loads(told)[1]["block"] for told in story.told["assignment"]][:3]


def test_it_is_measured_before_the_first_round_and_kept(database: Database) -> None:
    story = Told(database, RunFile.model_validate(VALUES), asides=False)
    assert json.loads(story.told["kept"][0]) == [["layers.0", 1.0], ["layers.1", 2.0]]
    assert "layers.1, layers.0" in story.told["event"][0]
    assert len(story.told["importance"]) == 1, "once, whatever follows"
    assert blocks_of(story) == ["layers.1", "layers.0", "layers.2"]


def test_a_run_goes_on_without_it_in_ascending_order_and_says_so(database: Database) -> None:
    story = Untold(database, RunFile.model_validate(VALUES), asides=False)
    assert json.loads(story.told["kept"][0]) == []
    assert "ascending order" in story.told["event"][0]
    assert blocks_of(story) == ["layers.0", "layers.1", "layers.2"]
