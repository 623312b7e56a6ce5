"""What must hold of a run's history, row by row: the first thing that does not is raised, by name. Bytes are looked at elsewhere."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fedcybgd.coordinator.domain.assignment import AssignmentState
from fedcybgd.coordinator.domain.averages import stood
from fedcybgd.coordinator.domain.history import VersionFacts, VersionOrigin, lineage
from fedcybgd.coordinator.domain.jobs.candidates import AverageTerm, HeadCalibration
from fedcybgd.coordinator.domain.jobs.measurements import ImportancePayload
from fedcybgd.coordinator.domain.jobs.payloads import Change
from fedcybgd.coordinator.domain.round import RoundState
from fedcybgd.coordinator.errors import Conflict
from fedcybgd.shared.contract.adapters import ADAPTERS
from fedcybgd.shared.contract.block_names import HEAD, layers_of


class VersionLost(Conflict):
    """A history has a gap, or ends before the present version."""

    code = "version_missing"


class VersionInvalid(Conflict):
    """What is written of a version does not agree with its neighbours, or with the block as it is."""

    code = "version_differs"


class VersionUnlike(Conflict):
    """A version was made again of its parent and its deltas, and came out as something else."""

    code = "version_not_reproduced"


class DeltaTwice(Conflict):
    """A delta is part of a block more than once."""

    code = "delta_applied_twice"


class DeltaUnknown(Conflict):
    """A delta is part of a block that no accepted visit gave for it."""

    code = "delta_not_accepted"


class DeltaLost(Conflict):
    """A delta counts as applied and is in no version."""

    code = "delta_not_applied"


class ImportanceUnlike(Conflict):
    """The importance of a block was measured again, and came out as something else."""

    code = "importance_not_reproduced"


class RoundInvalid(Conflict):
    """The rounds, their seats and their visits do not agree."""

    code = "round_differs"


@dataclass(frozen=True)
class KeptVersion:
    """A version as it is written down."""

    facts: VersionFacts
    digest: str
    size: int
    change: Change | None
    kept: bool
    velocity: str | None
    """digest of what the outer optimizer carries on from it"""
    average: Sequence[AverageTerm] = ()
    """the versions that it is the mean of"""
    calibration: HeadCalibration | None = None
    """what was done to its parent"""

    @property
    def called(self) -> str:
        return f"block {self.facts.block}, version {self.facts.version}"


Versions = Mapping[str, Mapping[int, KeptVersion]]
"""block → version → what is written of it"""


@dataclass(frozen=True)
class VisitFacts:
    """A visit as it is written down."""

    id: str
    round: int
    seat: int
    state: str
    applied: bool
    trained: frozenset[str]
    corrected: frozenset[str]
    """the blocks of which its delta has corrections"""
    delta: str | None


@dataclass(frozen=True)
class RoundFacts:
    number: int
    state: str
    seats: int
    """how many"""
    cycle: int
    blocks: Sequence[str]
    """the visited ones"""


@dataclass(frozen=True)
class History:
    """All that a database says of how a run's model came to be."""

    run: str
    rounds_done: int
    present: Mapping[str, tuple[int, str]]
    """block → its version and digest"""
    versions: Versions
    rounds: Sequence[RoundFacts]
    visits: Sequence[VisitFacts]
    ranking: Sequence[str]
    """the visited blocks by importance, where cycles go by it"""
    measured: tuple[ImportancePayload, Mapping[str, float]] | None
    """how that was measured, and what came of it"""


def check_rows(history: History) -> None:
    """Raise the first thing that is wrong with the rows of a run."""
    check_chains(history.versions, history.present)
    check_beside(history.versions)
    _check_terms(history)
    _check_rounds(history)
    check_order(history.rounds, history.ranking)


def check_chains(versions: Versions, present: Mapping[str, tuple[int, str]]) -> None:
    """Raise unless the versions of each block lead from one to the next, up to the present one."""
    for block in sorted({*versions, *present}):
        known = versions.get(block, {})
        if block not in present:
            raise VersionInvalid(f"there are versions of block {block}, which the run does not have")
        number, digest = present[block]
        for version in range(min(known, default=number), number + 1):
            if version not in known:
                raise VersionLost(f"block {block}, version {version}: the history does not have it")
        if (last := max(known)) != number or known[last].digest != digest:
            raise VersionInvalid(
                f"block {block} is at version {number} ({digest}), and the last one of its history is {last} ({known[last].digest})"
            )
        for version in sorted(known):
            _check_link(known, known[version], first=version == min(known))


def _check_link(known: Mapping[int, KeptVersion], row: KeptVersion, first: bool) -> None:
    facts, change = row.facts, row.change
    begins, averaged = (
        facts.origin in (VersionOrigin.BASE, VersionOrigin.FOUND),
        facts.origin in (VersionOrigin.AVERAGED, VersionOrigin.BEST),
    )
    made = (facts.origin == VersionOrigin.APPLIED) == (change is not None) and averaged == bool(row.average)
    made = made and (facts.origin == VersionOrigin.CALIBRATED) == (row.calibration is not None)
    if begins != first or begins != (facts.parent is None) or not made:
        raise VersionInvalid(
            f"{row.called}: it is {facts.origin}, and cannot be {'the first' if first else 'after another'} as it is written"
        )
    if facts.parent is None:
        return
    parent = known.get(facts.parent)
    if parent is None or facts.parent >= facts.version:
        raise VersionInvalid(f"{row.called}: its parent is version {facts.parent}, which is not before it in the history")
    if facts.origin == VersionOrigin.RESTORED and row.digest != parent.digest:
        raise VersionInvalid(f"{row.called}: it is to be version {facts.parent} again ({parent.digest}), and is {row.digest}")
    if averaged:
        _check_average(known, row)
    if row.calibration is not None and (facts.parent != facts.version - 1 or facts.round is None or facts.block != HEAD):
        raise VersionInvalid(f"{row.called}: it is to be the head that a run ended with, calibrated, and does not follow the last version")
    if change is not None:
        base = change.block
        if (base.block, base.version, base.digest) != (facts.block, facts.parent, parent.digest) or facts.parent != facts.version - 1:
            raise VersionInvalid(f"{row.called}: its deltas were added to version {base.version} ({base.digest}), which is not its parent")
        if change.outer is not None and change.velocity != parent.velocity:
            raise VersionInvalid(f"{row.called}: its outer optimizer went on from {change.velocity}, and its parent has {parent.velocity}")
        if (change.outer is None) != (row.velocity is None):
            raise VersionInvalid(f"{row.called}: {row.velocity} is carried on, and its outer optimizer is {change.outer}")
    elif facts.origin == VersionOrigin.RESTORED and row.velocity != parent.velocity:
        raise VersionInvalid(f"{row.called}: it carries on {row.velocity}, and the version that it is again {parent.velocity}")


def check_beside(versions: Versions) -> None:
    """Raise unless what was folded into a block is of the deltas and the adapters of which the mean was taken then."""
    means = [row.change for row in versions.get(ADAPTERS, {}).values() if row.change is not None]
    for row in (row for known in versions.values() for row in known.values()):
        if row.change is None or (beside := row.change.beside) is None:
            continue
        of = [mean for mean in means if mean.block.digest == beside.block.digest and mean.terms == row.change.terms]
        if not of or not layers_of(row.facts.block):
            raise VersionInvalid(f"{row.called}: what is folded into it is of no mean of adapters")


def _check_average(known: Mapping[int, KeptVersion], row: KeptVersion) -> None:
    """A run ended with it: with an average of the versions that its last rounds ended with, or with one of those before."""
    facts, last = row.facts, row.facts.parent
    line = [] if last is None else lineage({number: other.facts for number, other in known.items()}, last)
    if last != facts.version - 1 or facts.round is None:
        raise VersionInvalid(f"{row.called}: the run is to have ended with it, and it does not follow the last version")
    if facts.origin == VersionOrigin.BEST:
        of = [known[other.version] for other in line if [AverageTerm(version=other.version, rounds=1)] == row.average]
        if [other.digest for other in of] != [row.digest]:
            raise VersionInvalid(f"{row.called}: it is to be an older version again, and has not its digest")
    elif row.average != stood(line, facts.round + 1, sum(term.rounds for term in row.average)):
        raise VersionInvalid(f"{row.called}: it is to be an average, and not of the versions that its last rounds ended with")


def lineages(versions: Versions, present: Collection[tuple[str, int]]) -> dict[str, list[KeptVersion]]:
    """Of each block, the versions that version is made of, the youngest first."""
    return {
        block: [versions[block][f.version] for f in lineage({number: row.facts for number, row in versions[block].items()}, version)]
        for block, version in present
    }


def check_once(line: Sequence[KeptVersion]) -> None:
    """Raise unless every delta is in a lineage at most once: by its visit, or where that is not known by its bytes."""
    seen: dict[str, str] = {}
    for row in line:
        for term in row.change.terms if row.change else ():
            name = term.visit or term.digest
            if name in seen:
                raise DeltaTwice(f"{row.called}: delta {term.digest} is part of {seen[name]} already")
            seen[name] = row.called


def _check_terms(history: History) -> None:
    visits = {visit.id: visit for visit in history.visits}
    lines = lineages(history.versions, [(block, version) for block, (version, _) in history.present.items()])
    for rows in history.versions.values():
        for row in rows.values():
            for term in row.change.terms if row.change else ():
                visit, of = visits.get(term.visit), ADAPTERS if row.change and row.change.beside else row.facts.block
                gave = frozenset[str]() if visit is None else visit.trained if term.scale is None else visit.corrected
                if visit is None or (visit.delta, visit.round) != (term.digest, row.facts.round) or of not in gave:
                    raise DeltaUnknown(f"{row.called}: no visit of round {row.facts.round} gave delta {term.digest} for it")
    found = Counter[tuple[str, str]]()
    for block, line in lines.items():
        check_once(line)
        for row in line:
            for term in row.change.terms if row.change else ():
                visit = visits[term.visit]
                if visit.state != AssignmentState.ACCEPTED or not visit.applied:
                    how = f"{visit.state}, and does not count as applied"
                    raise DeltaUnknown(
                        f"{row.called}: delta {term.digest} is part of it, and visit {visit.id} of round {visit.round} is {how}"
                    )
                found[visit.id, block] += 1
    for visit in history.visits:
        for block in sorted(visit.trained | visit.corrected if visit.applied else ()):
            if not found[visit.id, block] and not _before(lines.get(block, ()), visit.round):
                raise DeltaLost(
                    f"round {visit.round}: delta {visit.delta} of visit {visit.id} counts as applied, and block {block} is without it"
                )


def _before(line: Sequence[KeptVersion], round: int) -> bool:
    """Whether a round was over when the history of a block began."""
    first = line[-1].facts.round if line else None
    return first is not None and round <= first


def check_order(rounds: Sequence[RoundFacts], ranking: Sequence[str]) -> None:
    """Raise unless each cycle visits its blocks in the order of their importance, as far as that is known."""
    cycles: dict[int, list[str]] = {}
    for row in sorted(rounds, key=lambda row: row.number):
        cycles.setdefault(row.cycle, []).extend(name for name in row.blocks if name in ranking)
    for cycle, names in cycles.items():
        if names != sorted(names, key=ranking.index):
            raise RoundInvalid(f"cycle {cycle} visits {', '.join(names)}, and by importance the blocks come as {', '.join(ranking)}")


def _check_rounds(history: History) -> None:
    rounds = {row.number: row for row in history.rounds}
    applied: dict[int, list[VisitFacts]] = {}
    for visit in history.visits:
        if visit.applied:
            applied.setdefault(visit.round, []).append(visit)
        if visit.applied and (visit.state != AssignmentState.ACCEPTED or visit.delta is None):
            raise RoundInvalid(f"round {visit.round}: visit {visit.id} counts as applied and is {visit.state}")
    for number in range(max([history.rounds_done, *(n + 1 for n in (*rounds, *applied))])):
        row, of = rounds.get(number), applied.get(number, [])
        if row is None:
            raise RoundInvalid(f"round {number}: it is not there, and {history.rounds_done} are done")
        if (row.state == RoundState.CLOSED) != (number < history.rounds_done):
            raise RoundInvalid(f"round {number}: it is {row.state}, and {history.rounds_done} are done")
        taken = sorted(visit.seat for visit in of)
        if taken != sorted(set(taken)) or any(not 0 <= seat < row.seats for seat in taken):
            raise RoundInvalid(f"round {number}: it has {row.seats} seats, and deltas of the seats {taken} count as applied")
        if row.state == RoundState.CLOSED and len(taken) != row.seats:
            raise RoundInvalid(f"round {number}: it is closed, and {len(taken)} deltas of its {row.seats} seats count as applied")
