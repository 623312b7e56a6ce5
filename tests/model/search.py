"""Walks through the states, the nearest first, and looks at each of them and at each step."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.model.world import AGENTS, OWNERS, Event, Outside, Rows, State, World

MOST_FAIR = 80
"""Steps in which any state must come to its end when nothing goes wrong any more."""
MAY_BE_REFUSED = frozenset({"claim", "submit", "give_back", "rollback", "without"})
"""What agents and operators do may come too late; what the coordinator does by itself may not."""
ALONG = "head"
"""The block that is trained along in every seat."""


class Broken(AssertionError):
    """A state or a step that must not be, with the way that led there."""


@dataclass
class Searched:
    states: int = 0
    steps: int = 0
    complete: bool = False
    """nothing is left to look at within the bounds"""
    happened: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)


class Search:
    """Raises `Broken` at the first state or step that is wrong."""

    def __init__(self, world: World, seconds: float, fair_every: int = 1, only: frozenset[str] = frozenset()) -> None:
        """Of every so many states it is looked whether the run comes to its end from there. `only`: nothing else happens than these."""
        self._only = only
        self._world, self._until, self._fair_every = world, time.process_time() + seconds, fair_every
        self._came: dict[bytes, tuple[bytes | None, Event | None]] = {}
        self._ends: set[bytes] = set()
        self._queue: deque[tuple[State, bytes]] = deque()
        self.found = Searched()

    def run(self, begin: Callable[[Rows, Outside], bool] = lambda *_: True) -> Searched:
        """Look at every deviation from the way on which nothing goes wrong: of one step, of two, and so on.

        `begin` says from which of its states on.
        """
        world = self._world
        for state in self._straight():
            with world.at(state):
                rows = world.rows()
            if begin(rows, state.outside):
                self._arrive(state, rows, world.key(rows, state.outside), None, ("on the straight path",))
        while self._queue:
            state, key = self._queue.popleft()
            with world.at(state):
                before = world.rows()
            for what in world.events(before, state.outside):
                if self._only and what[0] not in self._only:
                    continue
                if time.process_time() > self._until:
                    return self.found
                self._step(state, key, before, what)
        self.found.complete = True
        return self.found

    def _step(self, state: State, key: bytes, before: Rows, what: Event) -> None:
        world = self._world
        self.found.steps += 1
        self.found.happened.add(what[0])
        try:
            with world.at(state) as session:
                outside, answer = world.happen(session, state.outside, what)
                after = world.rows()
                reached = world.key(after, outside)
                look_at_step(world, before, after, what, answer, reached == key)
        except Exception as error:
            raise Broken(f"{type(error).__name__}: {error}\nat {self._way(key, what)}") from error
        if reached not in self._came:
            self._arrive(world.save(outside), after, reached, key, what)

    def _arrive(self, state: State, rows: Rows, key: bytes, before: bytes | None, by: Event | None) -> None:
        self._came[key] = (before, by)
        self.found.states += 1
        self.found.runs.add(rows.run.state)
        try:
            look_at(self._world, rows)
            if self.found.states % self._fair_every == 0:
                self._comes_to_an_end(state, key)
        except AssertionError as error:
            raise Broken(f"{error}\nafter {self._way(key, None)}") from error
        self._queue.append((state, key))

    def _straight(self) -> Iterator[State]:
        """The states of a run in which nothing goes wrong."""
        state, world = self._world.start, self._world
        for _ in range(MOST_FAIR):
            yield state
            with world.at(state) as session:
                for what in fair(world.rows(), state.outside):
                    outside, answer = world.happen(session, state.outside, what)
                    if answer is not None:
                        break
                if world.rows().run.state == "completed":
                    return
            state = world.save(outside)

    def _comes_to_an_end(self, state: State, key: bytes) -> None:
        """Nothing goes wrong any more: then the run completes."""
        passed: list[bytes] = []
        world = self._world
        while key not in self._ends:
            passed.append(key)
            assert len(passed) < MOST_FAIR, "the run goes round in circles"
            with world.at(state) as session:
                rows = world.rows()
                if rows.run.state == "completed":
                    break
                for what in fair(rows, state.outside):
                    outside, answer = world.happen(session, state.outside, what)
                    if answer is not None:
                        break
                else:
                    raise AssertionError("the run stands still for ever")
                assert not isinstance(answer, Exception), f"{what}: {answer}"
                key = world.key(world.rows(), outside)
            state = world.save(outside)
        self._ends.update(passed)

    def _way(self, key: bytes | None, last: Event | None) -> str:
        steps = [last]
        while key is not None:
            key, step = self._came[key]
            steps.append(step)
        return " → ".join(" ".join(map(str, step)) for step in reversed(steps) if step)


def look_at_step(world: World, before: Rows, after: Rows, what: Event, answer: Any, same: bool) -> None:
    """`same`: the step led to the state that it began in."""
    kind = what[0]
    assert kind in MAY_BE_REFUSED or not isinstance(answer, Exception), f"the coordinator stumbles over itself: {answer}"
    if kind == "submit":
        known = what[1]
        row, digest = before.assignments[known.assignment], world.delta(before, known)
        mine = (row.state, row.agent, row.attempt) == ("leased", known.agent, known.attempt)
        received = row.state in ("submitted", "accepted", "rejected", "undone")  # of which those without a delta were not
        repeated = received and (row.agent, row.attempt, row.delta) == (known.agent, known.attempt, digest)
        taken = not isinstance(answer, Exception)
        assert taken == (mine or repeated), f"a delta is taken from who holds the attempt, and no other: {row} {answer}"
        if taken:
            assert (answer.attempt, answer.digest) == (known.attempt, digest), "its receipt is its own"
        assert same or mine, "a repeat changes nothing"
    if kind in ("finish", "reject", "lose", "engine_died"):
        hold, job = what[1], before.jobs[what[1].job]
        theirs = (job.state, job.owner, job.tries) == ("running", hold.owner, hold.tries)
        assert theirs or (before.assignments, before.jobs) == (after.assignments, after.jobs), f"who lost a job ended it: {job}"
    undone = kind == "finish" and before.jobs[what[1].job].kind == "restore"
    for name, row in before.assignments.items():
        if row.state in ("submitted", "accepted") and not row.applied and kind != "lose" and not undone:
            now = after.assignments[name]
            allowed = {row.state, "accepted"} | ({"rejected"} if kind == "reject" else set())
            assert now.state in allowed, f"a delta that was received is lost: {row.state} → {now.state}"
            assert now.delta == row.delta, "a delta that was received is another one now"


def look_at(world: World, rows: Rows) -> None:
    visits = list(rows.assignments.values())
    for name, version, digest in rows.blocks:
        steps = world.history(digest)
        wanted = [visit.delta for visit in visits if visit.applied and (name == ALONG or name in json.loads(visit.blocks))]
        assert sorted(d for step in steps for d in step) == sorted(map(str, wanted)), f"{name} is not made of each delta that counts, once"
        assert version == len(steps) or (version > len(steps) and any(visit.state == "undone" for visit in visits))
    assert all(visit.state == "accepted" for visit in visits if visit.applied)
    for number, state, seats in rows.rounds:
        members = [visit for visit in visits if visit.round == number and visit.state not in ("rejected", "undone")]
        assert sorted(v.seat for v in members) == list(range(len(json.loads(seats)))), "of each seat there is one visit that counts"
        assert state != "closed" or all(v.applied for v in members), f"round {number} closed without one of its seats"
    assert rows.run.state != "completed" or rows.run.rounds_done == rows.run.rounds_total


def fair(rows: Rows, outside: Outside) -> list[Event]:
    """What is done next by coordinators and agents that live: the first of these that comes to something."""
    for hold in outside.holds:
        job = rows.jobs[hold.job]
        if (job.state, job.owner, job.tries) == ("running", hold.owner, hold.tries):
            return [("finish", hold)]
    if any(job.state == "queued" for job in rows.jobs.values()):
        return [("take", OWNERS[0])]
    held = [
        known for known in sorted(outside.leases)
        if (row := rows.assignments[known.assignment]).state == "leased" and (row.agent, row.attempt) == (known.agent, known.attempt)
    ]  # fmt: skip
    if rows.run.state == "paused":
        return [("resume",)]
    idle = [agent for agent in AGENTS if agent not in {known.agent for known in held}]
    return [*(("claim", agent) for agent in idle if any(a.state == "pending" for a in rows.assignments.values())),
            *(("submit", known) for known in held), *(("claim", agent) for agent in idle)]  # fmt: skip
