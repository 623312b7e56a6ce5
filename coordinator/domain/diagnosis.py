"""The diagnosis of a run: a table of symptoms, each with what shows it, from when on it counts, and what to do about it."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, get_args

from fedcybgd.coordinator.domain import gate, held_up, label_skew
from fedcybgd.coordinator.domain.admission import OF_BLOCK
from fedcybgd.coordinator.domain.assignment import ON_PURPOSE, TakenBack
from fedcybgd.coordinator.domain.attempt_advice import MENDED_BY
from fedcybgd.coordinator.domain.candidates import without_improvement
from fedcybgd.coordinator.domain.diagnosis_facts import DiagnosisFacts
from fedcybgd.coordinator.domain.gate import GateVerdict
from fedcybgd.shared.contract.assignments import ReturnReason

LOOKED_AT = 64
"""Judged visits that are looked at, the latest ones: as many as the band and the gate remember"""
SLOW = 2.0
"""Times the median of the others: whoever waits for such an agent stands still for half of the time."""
ENOUGH_VISITS = 3
"""Of an agent, at blocks that others have trained, too, before speeds are compared: the first visit warms up."""
FULL = 0.9
"""Share of the memory that an agent may take: a longer row or a larger block takes the rest."""
HANGS_S = 60.0
"""Seconds without use of the processor: half of the time after which an engine is ended."""
UNFAITHFUL = 0.5
"""Cosine: less than half of a step of such a gradient goes where the real model's would."""
FLAT = 5
"""Scores without a better one."""
CHECK_SAYS = "`fedagent check` on its machine says what is wrong; it is asked again by itself when that is mended"
NAMED = 4
ATTEMPT_CODES: frozenset[str] = frozenset({*get_args(ReturnReason), *TakenBack}) - ON_PURPOSE
"""Why an attempt came to nothing, but for what is nobody's failure"""

Level = Literal["note", "warning", "alarm"]


@dataclass(frozen=True)
class Evidence:
    """What shows a symptom; `advice` where it depends on what was seen."""

    text: str
    advice: str = ""


@dataclass(frozen=True)
class Symptom:
    """A line of the table."""

    code: str
    level: Level
    threshold: str
    """from when on it counts, and where that number comes from"""
    advice: str
    look: Callable[[DiagnosisFacts], Evidence | None]


@dataclass(frozen=True)
class SymptomResult:
    """A symptom that a run shows."""

    symptom: Symptom
    evidence: str
    advice: str


def diagnose(facts: DiagnosisFacts) -> list[SymptomResult]:
    """What is unusual about a run, alarms first, else in the order of the table."""
    found = [
        SymptomResult(symptom, seen.text, seen.advice or symptom.advice)
        for symptom in SYMPTOMS
        if (seen := symptom.look(facts)) is not None
    ]
    order: list[Level] = ["alarm", "warning", "note"]
    return sorted(found, key=lambda one: order.index(one.symptom.level))


# ---- what shows them


def _damaged(facts: DiagnosisFacts) -> Evidence | None:
    losses = facts.losses
    worse = [number for number, found in enumerate(gate.verdicts(losses), 1) if found != GateVerdict.FINE]
    if not worse:
        return None
    at = worse[-1]
    times = f"{len(worse)} rounds did" if len(worse) > 1 else "one round did"
    return Evidence(f"the held-out loss rose from {losses[at - 1]:.4g} to {losses[at]:.4g}, out of all proportion to before ({times} so)")


def _rising(facts: DiagnosisFacts) -> Evidence | None:
    if len(facts.losses) < gate.ENOUGH or not math.isfinite(facts.losses[-1]):
        return None
    lowest = min(facts.losses)
    if facts.losses[-1] <= (1 + label_skew.RISE) * lowest:
        return None
    since = len(facts.losses) - 1 - list(facts.losses).index(lowest)
    ago = f"{since} rounds ago" if since > 1 else "a round ago"
    return Evidence(f"the loss on the calibration rows is {facts.losses[-1]:.4g}; {ago} it was {lowest:.4g}")


def _flat(facts: DiagnosisFacts) -> Evidence | None:
    since = without_improvement(facts.scores)
    return Evidence(f"the last {since} scores were no better than the best before") if since >= FLAT else None


def _out_of_band(facts: DiagnosisFacts) -> Evidence | None:
    """`OF_BLOCK` stands in what is said of a delta that is large beside its block, however far others went."""
    some = [(agent, reason) for agent, reason in facts.rejected if kind_of(reason) in ("norm", "direction")]
    found, rules = _rejections(some, facts.judged), {OF_BLOCK in reason for _, reason in some}
    if found is None or True not in rules:
        return found
    narrow = "admission.max_relative_norm" if False not in rules else "admission.max_relative_norm or admission.norm_band"
    return Evidence(found.text, OUT_OF_BAND.replace("admission.norm_band", narrow))


def _rejected(facts: DiagnosisFacts) -> Evidence | None:
    return _rejections([(agent, reason) for agent, reason in facts.rejected if kind_of(reason) not in ("norm", "direction")], facts.judged)


def _rejections(some: Sequence[tuple[str, str]], judged: int) -> Evidence | None:
    if not some:
        return None
    kinds = Counter(kind_of(reason) for _, reason in some)
    who = Counter(agent for agent, _ in some)
    return Evidence(
        f"{len(some)} of the last {judged} deltas were rejected: {_counted(kinds)}; from {_counted(who)}. The last one: {some[0][1]}"
    )


def kind_of(reason: str) -> str:
    """The first word of why a delta was rejected: of all reasons there are only so many kinds."""
    word = reason.partition(":")[0].strip()
    return word if word.replace("_", "").isalpha() and len(word) <= 30 else "other"


def _failing(facts: DiagnosisFacts) -> Evidence | None:
    often = {agent: why for agent, why in facts.failures.items() if why.total() >= 2}
    if not often:
        return None
    worst = sorted(often.items(), key=lambda item: (-item[1].total(), item[0]))
    text = "; ".join(f"{agent}: {_counted(why)}" for agent, why in worst[:NAMED])
    more = f"; and {len(worst) - NAMED} agents more" if len(worst) > NAMED else ""
    commonest = sum((why for _, why in worst), Counter[str]()).most_common(1)[0][0]
    return Evidence(text + more, MENDED_BY.get(commonest, "`fedagent status` and `fedagent check` on its machine say more"))


def _held_up(facts: DiagnosisFacts) -> Evidence | None:
    return Evidence(_listed(lines)) if (lines := held_up.seen(facts.held, facts.cut)) else None


def _quarantined(facts: DiagnosisFacts) -> Evidence | None:
    if not facts.quarantined:
        return None
    return Evidence(_listed([f"{agent} until {until}" for agent, until in sorted(facts.quarantined.items())]))


def _unfit(facts: DiagnosisFacts) -> Evidence | None:
    if not facts.unfit:
        return None
    advice = "; ".join(f"{reason}: {MENDED_BY[reason]}" for reason in sorted({*facts.unfit.values()} & MENDED_BY.keys()))
    listed = _listed([f"{agent} ({reason})" for agent, reason in sorted(facts.unfit.items())])
    return Evidence(f"without {listed}", f"{advice}; {CHECK_SAYS}" if advice else CHECK_SAYS)


def _slow(facts: DiagnosisFacts) -> Evidence | None:
    """Like is compared with like: more rows take longer, and so do other blocks."""
    slow = []
    for agent, visits in sorted(facts.token_seconds.items()):
        times = []
        for blocks, own in visits:
            others = [took for other, theirs in facts.token_seconds.items() if other != agent for at, took in theirs if at == blocks]
            if others:
                times.append(own / median(others))
        if len(times) >= ENOUGH_VISITS and median(times) > SLOW:
            slow.append(f"{agent} takes {median(times):.1f} times as long for a token as others at the same blocks")
    return Evidence(_listed(slow)) if slow else None


def _memory(facts: DiagnosisFacts) -> Evidence | None:
    near = [
        f"{agent} took {peak / 1e9:.2f} of {limit / 1e9:.2f} GB"
        for agent, (peak, limit) in sorted(facts.memory.items())
        if limit and peak >= FULL * limit
    ]
    return Evidence(_listed(near)) if near else None


def _unfaithful(facts: DiagnosisFacts) -> Evidence | None:
    bound = UNFAITHFUL if facts.floor is None else facts.floor
    low = [f"{plan}: {cosine:.2f}" for plan, cosine in sorted(facts.cosines.items(), key=lambda item: item[1]) if cosine < bound]
    return Evidence(f"the gradient of these emulators agrees badly with the real model's: {_listed(low)}") if low else None


def _hangs(facts: DiagnosisFacts) -> Evidence | None:
    still = [f"a job `{kind}` has used no processor for {seconds:.0f} s" for kind, seconds in facts.still.items() if seconds >= HANGS_S]
    return Evidence(_listed(still)) if still else None


def _unmeasured(facts: DiagnosisFacts) -> Evidence | None:
    return Evidence(f"of scores, losses and fidelities {facts.unmeasured:,} could not be measured") if facts.unmeasured else None


def _told(code: str) -> Callable[[DiagnosisFacts], Evidence | None]:
    def look(facts: DiagnosisFacts) -> Evidence | None:
        return Evidence(facts.told[code]) if code in facts.told else None

    return look


def _counted(counts: Counter[str]) -> str:
    most = counts.most_common(NAMED)
    rest = counts.total() - sum(number for _, number in most)
    return ", ".join(f"{number} × {word}" for word, number in most) + (f", {rest} × other" if rest else "")


def _listed(lines: Sequence[str]) -> str:
    return "; ".join(lines[:NAMED]) + (f"; and {len(lines) - NAMED} more" if len(lines) > NAMED else "")


# ---- the table

GATE = f"what the loss did from round to round in this run (docs/run-file.md, gate); from {gate.ENOUGH} rounds on"
OUT_OF_BAND = (
    "if it is one agent, look at its rows and its machine, or leave it out; if it is many, the learning rate is too high, or "
    "admission.norm_band is too narrow for this model"
)
SYMPTOMS: tuple[Symptom, ...] = (
    Symptom(
        "loss_out_of_proportion", "alarm", GATE,
        "`fedcoord run rollback RUN --best` takes the model back; then `admission.gate: enforce`, a lower train.learning_rate, or "
        "`fedcoord run without RUN AGENT` if it is one agent", _damaged,
    ),
    Symptom(
        "engine_hangs", "alarm", f"{HANGS_S:.0f} s: half of the time after which an engine is ended",
        "it is ended and begun again by itself; if it happens again, look into the coordinator's log and at its disk", _hangs,
    ),
    Symptom(
        "free_rider", "warning", "the band's rule: what no work at all comes to (docs/run-file.md, admission)",
        "ask its owner; `fedcoord run without RUN AGENT` takes its deltas out, `fedcoord agents revoke AGENT` shuts it out", _told("free_rider"),
    ),
    Symptom(
        "deltas_out_of_band", "warning", "any: of 96 honest visits that were measured none was (docs/benchmarks.md, poisoning)",
        OUT_OF_BAND, _out_of_band,
    ),
    Symptom(
        "deltas_rejected", "warning", "any: of 96 honest visits that were measured none was (docs/benchmarks.md, poisoning)",
        "the reason says which rule; `fedcoord agents list` has the agent's last error", _rejected,
    ),
    Symptom(
        "agents_fail", "warning", "two failed attempts of one agent: the first is weather (as quarantine counts)", "", _failing,
    ),
    Symptom(
        "held_up", "warning",
        f"no renewal for {held_up.UNHEARD_SHARE:.0%} of a lease and {held_up.UNHEARD_S:.0f} s (one comes every third at least), one trouble "
        f"for {held_up.TROUBLED_S:.0f} s (so long it may be a restart), "
        f"or {held_up.AGAIN} troubles (the first is weather)",
        "is its machine awake, and `fedagent run` there? `fedagent status` says what answers it; then look at what stands between the two: "
        "a proxy may let claims through, and end renewals, long requests or large bodies (docs/running-an-agent.md, Networks)",
        _held_up,
    ),
    Symptom(
        "quarantined", "warning", "as agents are quarantined: it failed at one visit after another (docs/operating.md)",
        "mend its machine (`fedagent check`), then `fedcoord agents release AGENT`; it is asked again by itself when the time is over",
        _quarantined,
    ),
    Symptom(
        "agents_unfit", "warning", "any that says so of itself, but for those whose owners have not consented", "", _unfit,
    ),
    Symptom(
        "loss_rising", "warning", f"{label_skew.RISE:.0%} over the lowest, as for label skew",
        "a lower train.learning_rate or schedule.damping below 1; with rows of unlike labels train.label_skew (docs/run-file.md)", _rising,
    ),
    Symptom(
        "label_skew", "warning", f"divergence {label_skew.UNLIKE:g} of 1: random shares stay under 0.1 (docs/run-file.md, Label skew)",
        "what the evidence says after its colon, for a run after this one", _told("label_skew"),
    ),
    Symptom(
        "labels_forgotten", "warning", f"{label_skew.NEVER:.0%} of the labels never right, and a loss that rose by {label_skew.RISE:.0%}",
        "what the evidence says after its semicolon, for a run after this one", _told("labels_forgotten"),
    ),
    Symptom(
        "single_label", "warning", "label counts of one label, or a training loss of exactly 0", "leave that agent out, or train.label_skew: none",
        _told("single_label"),
    ),
    Symptom(
        "emulator_unfaithful", "warning", f"compression.floor, else a cosine of {UNFAITHFUL:g}: more than half of a step goes elsewhere",
        "a more faithful compression.policy (int8 or none), or compression.floor", _unfaithful,
    ),
    Symptom(
        "agents_slow", "note",
        f"{SLOW:g} times what a token takes others (median) at the same blocks, over {ENOUGH_VISITS} visits: whoever waits stands still half of the time",
        "fewer train.steps for all, a shorter schedule.reassign_after_s, or `schedule.agents: first_come`", _slow,
    ),
    Symptom(
        "memory_near_limit", "note", f"{FULL:.0%} of what the agent allows: a longer row or a larger block takes the rest",
        "raise limits.memory_gb of that agent, or lower train.batch_size or task.max_length (`fedcoord plan` tells the need)", _memory,
    ),
    Symptom(
        "score_flat", "note", f"{FLAT} scores: a rule of thumb, no measurement; `stop.patience` of the run file is yours",
        "it may have learnt what it can: `stop` in the run file ends such a run early; or a higher learning rate, more rows, other order of blocks",
        _flat,
    ),
    Symptom(
        "unmeasured", "note", "any", "the events say why: `fedcoord status`, or the coordinator's log", _unmeasured,
    ),
)  # fmt: skip
