"""Draws docs/states.md from the transition tables; `make docs` writes it."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from fedcybgd.coordinator.domain.agent import AGENT, AgentEvent, AgentState
from fedcybgd.coordinator.domain.assignment import ASSIGNMENT, AssignmentEvent, AssignmentState
from fedcybgd.coordinator.domain.jobs.kinds import JobState
from fedcybgd.coordinator.domain.jobs.states import JOB, JobEvent
from fedcybgd.coordinator.domain.machine import Machine
from fedcybgd.coordinator.domain.model import MODEL, ModelEvent, ModelState
from fedcybgd.coordinator.domain.round import ROUND, RoundEvent, RoundState
from fedcybgd.coordinator.domain.run import RUN, RunEvent, RunState

MACHINES: tuple[Machine[Any, Any], ...] = (RUN, ROUND, ASSIGNMENT, AGENT, MODEL, JOB)

# Keyed by class and member: members of different machines may be the same word.
MEANINGS: dict[tuple[type[StrEnum], str], str] = {
    (RunState, "draft"): "made from a run file; its blocks and its head are prepared outside the web process",
    (RunState, "running"): "rounds are opened one after another",
    (RunState, "paused"): "no work is leased; what was leased or submitted before is still taken and applied",
    (RunState, "completed"): "all rounds are closed",
    (RunState, "failed"): "its blocks could not be prepared; `reason` says why",
    (RunState, "cancelled"): "ended by the operator; what was applied stays",
    (RunEvent, "prepare"): "its blocks and its head are there; it may be started from now on",
    (RunEvent, "start"): "the operator starts it; the first round opens with the agents that are there",
    (RunEvent, "pause"): "the operator pauses it, too many attempts failed, nobody is left to ask, or the engine failed",
    (
        RunEvent,
        "resume",
    ): "the operator resumes it, and failures so far are forgotten; or nobody was left to ask, and an agent is ready again",
    (RunEvent, "finish"): "the last round was closed",
    (RunEvent, "fail"): "the run could not be prepared",
    (RunEvent, "cancel"): "the operator cancels it",
    (RunEvent, "undo"): "the operator takes rounds back, or the deltas of an agent: the older versions are there again",
    (RoundState, "open"): "its blocks are being trained or judged",
    (RoundState, "applying"): "deltas were accepted; the next versions of their blocks are being made",
    (RoundState, "closed"): "all its deltas are part of the present versions",
    (RoundEvent, "all_accepted"): "every delta of the round was accepted",
    (RoundEvent, "deadline"): "`wave_deadline_s` after the first acceptance, and none is being judged: the accepted are applied",
    (RoundEvent, "applied"): "the new shards are stored, and no delta of the round is missing",
    (RoundEvent, "partly_applied"): "the new shards are stored; what came too late is trained from them",
    (RoundEvent, "refuse"): "what they make of the model did not pass the gate; those that do harm are rejected",
    (RoundEvent, "lose"): "a delta was lost on the coordinator's disk before it was applied",
    (
        RoundEvent,
        "undo",
    ): "the deltas of an agent are taken out of it; its seats are trained again. A round that is taken back whole is deleted",
    (AssignmentState, "pending"): "waits for an agent",
    (AssignmentState, "leased"): "an agent works on it until its lease ends",
    (AssignmentState, "submitted"): "its delta has come and is being judged",
    (AssignmentState, "accepted"): "its delta passed; it is applied once, unless the run is cancelled first",
    (AssignmentState, "rejected"): "its delta is not used; a new assignment takes its place, unless the run has ended",
    (AssignmentState, "undone"): "its round was taken back, or its delta was taken out: it is no part of the model",
    (AssignmentEvent, "undo"): "rounds are taken back to before its own, or the deltas of its agent are",
    (AssignmentEvent, "claim"): "an agent gets it; the attempt counts up. The holder may claim again: it restarted",
    (AssignmentEvent, "lapse"): "the lease ended without renewal",
    (AssignmentEvent, "give_back"): "the agent returned it, with a reason, or was revoked",
    (AssignmentEvent, "withdraw"): "its round is applied without it, after the deadline; it is trained again from the new versions",
    (AssignmentEvent, "submit"): "the agent submitted its delta",
    (AssignmentEvent, "accept"): "the delta's numbers passed admission",
    (AssignmentEvent, "reject"): "the delta's numbers or what it makes of the model did not pass, or the run had ended",
    (AssignmentEvent, "lose"): "its delta was lost on the coordinator's disk before it was applied: it is trained again",
    (AgentState, "enrolled"): "has a key and was not seen yet",
    (AgentState, "active"): "was seen lately",
    (AgentState, "silent"): "was not seen for `FEDCOORD_SILENT_AFTER_S` seconds",
    (AgentState, "revoked"): "shut out for good",
    (AgentEvent, "seen"): "the agent asked for itself or for work, or renewed a lease",
    (AgentEvent, "missed"): "the sweeper found that it was silent for too long",
    (AgentEvent, "revoke"): "the operator revoked it",
    (ModelState, "adding"): "it is being imported outside the web process",
    (ModelState, "ready"): "runs can use it",
    (ModelState, "failed"): "it could not be imported; `reason` says why",
    (ModelEvent, "imported"): "its blocks are stored",
    (ModelEvent, "fail"): "the import failed",
    (ModelEvent, "add_again"): "a model is added under the name of one whose import failed",
    (JobState, "queued"): "waits in its lane",
    (JobState, "running"): "an engine process works on it",
    (JobState, "done"): "its result is saved, and what follows from it",
    (JobState, "failed"): "it came to nothing; `error_code` and `error` say why",
    (JobState, "skipped"): "a measurement of which a newer one was wanted before it began",
    (JobEvent, "take"): "its lane has nothing older to do",
    (JobEvent, "skip"): "a newer measurement of its kind was requested",
    (JobEvent, "finish"): "the engine answered",
    (JobEvent, "fail"): "the engine refused or failed, or three of its processes died or hung",
    (JobEvent, "interrupt"): "its process died, or the coordinator did",
    (JobEvent, "repeat"): "the operator resumed the run that waits for it",
}

HEADING = """# States

This file is generated from the transition tables in `coordinator/domain/`. Do not edit it: `make docs` writes it.

A transition that a table does not have is refused with 409 `invalid_transition`, and nothing changes.
What led to a state is not a state: it is in a column of its own, `reason`.
"""


def document() -> str:
    """All of docs/states.md."""
    return "\n".join([HEADING, *(section(machine) for machine in MACHINES)])


def section(machine: Machine[Any, Any]) -> str:
    """One machine: its diagram, its states, its events, and what every event does in every state."""
    states: list[StrEnum] = list(machine.states.__members__.values())
    events: list[StrEnum] = list(machine.events.__members__.values())
    return "\n".join(
        [
            f"## {machine.noun.capitalize()}\n",
            diagram(machine),
            *_rows(("state", "meaning"), ((f"`{s}`", MEANINGS[machine.states, str(s)]) for s in states)),
            *_rows(("event", "when"), ((f"`{e}`", MEANINGS[machine.events, str(e)]) for e in events)),
            *_rows(
                ("in state", *(f"`{e}`" for e in events)),
                ((f"`{s}`", *(str(machine.table.get((s, e), "–")) for e in events)) for s in states),
            ),
        ]
    )


def diagram(machine: Machine[Any, Any]) -> str:
    """A Mermaid state diagram; events that lead the same way share an arrow."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (before, event), after in machine.table.items():
        arrows.setdefault((str(before), str(after)), []).append(str(event))
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {machine.start}"]
    lines += [f"    {before} --> {after}: {', '.join(events)}" for (before, after), events in arrows.items()]
    lines += [f"    {state} --> [*]" for state in machine.states if machine.is_final(state)]
    return "\n".join([*lines, "```\n"])


def _rows(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (heading, ("---",) * len(heading), *rows)] + [""]
