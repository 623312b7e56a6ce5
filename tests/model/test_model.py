"""All interleavings of two agents, two blocks and two coordinators hold what is promised; and mistakes that are planted are found."""

import inspect
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from fedcybgd.coordinator.domain import assignment as rules
from fedcybgd.coordinator.services import outcomes
from fedcybgd.coordinator.services.operate import undo
from fedcybgd.coordinator.services.path import apply_round, close_round, judge, lease, submit
from tests.model.search import Broken, Search
from tests.model.world import Outside, Rows, World

SECONDS = float(os.environ.get("MODEL_SECONDS", "8"))
"""of a processor; `make model` takes 20 minutes"""
PLANTED_S = 6.0
Plant = Callable[[pytest.MonkeyPatch], None]
Begin = Callable[[Rows, Outside], bool]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def longer() -> World:
    return World(cycles=2)


def test_every_interleaving_holds_what_is_promised(world: World) -> None:
    found = Search(world, SECONDS, fair_every=5).run()
    print(f"{found.states} states, {found.steps} steps{', and no more there are' if found.complete else ''}")
    assert found.complete or found.states > 100
    assert found.happened >= {"claim", "submit", "give_back", "lapse", "take", "finish", "reject", "lose", "owner_gone"}


def test_every_way_to_take_a_run_back_holds_what_is_promised(longer: World) -> None:
    """From each state of a run of two rounds: taken back, or without an agent, while others claim, send, judge and apply."""
    only = frozenset({"rollback", "without", "take", "finish", "claim", "submit", "resume"})
    found = Search(longer, SECONDS, fair_every=5, only=only).run()
    print(f"{found.states} states, {found.steps} steps{', and no more there are' if found.complete else ''}")
    assert found.states > 50
    assert found.happened >= {"rollback", "without", "resume", "finish"}


def planted(module: ModuleType, function: str, *changes: tuple[str, str]) -> Plant:
    """The function with a few words of its source changed; they must be there, so that no plant withers unseen."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        source = inspect.getsource(getattr(module, function))
        for old, new in changes:
            assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {function}"
            source = source.replace(old, new)
        names: dict[str, Any] = {}
        exec(compile(source, f"planted {function}", "exec"), vars(module), names)
        # Its code, not its name: others hold the function itself.
        patch.setattr(getattr(module, function), "__code__", names[function].__code__)

    return plant


def running(kind: str) -> Begin:
    return lambda rows, outside: any(job.kind == kind and job.state == "running" for job in rows.jobs.values())


def states(*wanted: str) -> Begin:
    return lambda rows, outside: sorted(visit.state for visit in rows.assignments.values()) == sorted(wanted)


def first_applied(rows: Rows, outside: Outside) -> bool:
    """The deltas of the first round are being applied."""
    return rows.run.rounds_done == 0 and running("apply")(rows, outside)


HANDS = frozenset({"claim", "submit", "give_back", "lapse"})
JOBS = frozenset({"take", "finish", "owner_gone", "lapse", "deadline"})
UNDONE = frozenset({"rollback", "take", "finish"})
"""With these alone a run of two rounds is looked at: one that has done its only round has ended."""
PLANTS: dict[str, tuple[Plant, Begin, frozenset[str], str]] = {
    "no attempt fence": (
        planted(rules, "check_lease", ("if given != attempt:", "if False:")),
        states("leased", "leased"), HANDS, "from who holds the attempt",
    ),
    "a delta from whoever sends it": (
        planted(rules, "check_lease", ("or holder != agent", ""), ("if given != attempt:", "if False:")),
        states("leased", "leased"), HANDS, "from who holds the attempt",
    ),
    "a repeat is taken once more": (
        planted(submit, "receipt", ("return _receipt(assignment)", "return None")),
        running("admit"), HANDS, "from who holds the attempt|stumbles",
    ),
    "a lease of what was submitted ends": (
        planted(
            lease, "lapse", ("(Assignment.state == AssignmentState.LEASED) &", "Assignment.state.in_(('leased', 'submitted')) &"),
            ("if assignment.state == AssignmentState.LEASED and", "if"),
        ),
        running("admit"), JOBS, "lost|stumbles",
    ),
    "who lost a job ends it": (
        planted(outcomes, "_held", ("if is_held(job.state, job.owner, job.tries, hold)", 'if job.state == "running"')),
        running("admit"), JOBS, "who lost a job ended it",
    ),
    "a round closes with a seat open": (
        planted(close_round, "take_over", ("[member for member in members if not member.applied]", "[]")),
        states("accepted", "leased"), JOBS, "closed without|stands still|stumbles",
    ),
    "the next round is not opened": (
        planted(close_round, "take_over", ("    open_round.open_next(session, run, now)\n", "")),
        running("apply"), JOBS, "stands still",
    ),
    "an accepted delta is not applied": (
        planted(judge, "judged", ("    apply_round.apply_if_due(session, run, assignment.round, now)\n", "")),
        running("admit"), JOBS, "stands still",
    ),
    "what is being judged is applied without": (
        planted(apply_round, "apply_if_due", ("or any(a.state == AssignmentState.SUBMITTED for a in missing)", "")),
        running("admit"), JOBS, "from the present version|lost|stumbles|stands still",
    ),
    "a run is taken back by what it was when that was asked": (
        planted(undo, "restored", ("!= payload.versions", "is None")), first_applied, UNDONE, "not made of each delta|stumbles",
    ),
    "what was sent before a run was taken back counts": (
        planted(undo, "_undo_rounds", ("            assignments.undo(visit, TakenBack.ROLLED_BACK, now)\n", "            pass\n")),
        first_applied, UNDONE, "not made of each delta|of each seat|stumbles|stands still",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTS)
def test_a_mistake_that_is_planted_is_found(name: str, world: World, longer: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, begin, only, said = PLANTS[name]
    plant(monkeypatch)
    with pytest.raises(Broken, match=said):
        Search(longer if only is UNDONE else world, PLANTED_S, only=only).run(begin)
