"""What a run may end with: its last version, an average of versions, or the best before; which of them is kept, and when it ends early."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum

from fedcybgd.coordinator.domain.jobs.candidates import AverageTerm, CandidateBlock
from fedcybgd.coordinator.domain.verification import KeptVersion
from fedcybgd.shared.contract.codec import EXACT
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.contract.measured import Score


class RunCandidate(StrEnum):
    LAST = "last"
    """the model as the last round left it"""
    AVERAGE = "average"
    """of the versions that the last rounds ended with"""
    BEST = "best"
    """the model as it was when it scored best"""


def candidate_block(
    line: Sequence[KeptVersion], terms: Sequence[AverageTerm], has_bytes: Callable[[KeptVersion], bool]
) -> CandidateBlock | None:
    """How the mean of versions is made; None where what that takes is not kept. `line`: a lineage that has them, youngest first."""
    weights = {term.version: term.rounds for term in terms}
    places = [place for place, row in enumerate(line) if row.facts.version in weights]
    begin = next((place for place in range(max(places), len(line)) if has_bytes(line[place])), None)
    if begin is None:
        return None
    way = line[min(places) : begin + 1][::-1]
    changes = [row.change for row in way[1:] if row.change is not None]
    if len(changes) != len(way) - 1:
        return None
    return CandidateBlock(base=_ref(way[0]), changes=changes, rounds=[weights.get(row.facts.version, 0) for row in way], last=_ref(way[-1]))


def _ref(row: KeptVersion) -> ShardRef:
    return ShardRef(block=row.facts.block, version=row.facts.version, codec=EXACT, digest=row.digest, size=row.size)


def kept(scores: Mapping[RunCandidate, Score | None]) -> RunCandidate:
    """The candidate with the best score, and of several the last version, which nobody had to make. No score is worse than any."""
    best = RunCandidate.LAST
    for candidate, score in scores.items():
        if is_better(score, scores.get(best)):
            best = candidate
    return best


def chosen(scores: Mapping[RunCandidate, Score | None], keep_average: bool) -> RunCandidate:
    """With which candidate a run ends. `keep_average`: where there is one, whatever the scores say."""
    return RunCandidate.AVERAGE if keep_average and RunCandidate.AVERAGE in scores else kept(scores)


def without_improvement(scores: Iterable[Score]) -> int:
    """How many scores there were since the best of them, the oldest first. What could not be measured says nothing."""
    best, since = None, 0
    for score in scores:
        if score.loss is None:
            continue
        if best is None or is_better(score, best):
            best, since = score, 0
        else:
            since += 1
    return since


def is_better(one: Score | None, other: Score | None) -> bool:
    """Whether a score is better than another by the run's metric: accuracy where there are labels, F1 of answers in contexts, else the loss."""
    return _value(one) > _value(other)


def calibration_helps(before: Score, after: Score) -> bool:
    """Whether a calibrated head is kept: its loss is lower, and its accuracy not."""
    if before.loss is None or after.loss is None or not after.loss < before.loss:
        return False
    return (after.accuracy or 0.0) >= (before.accuracy or 0.0)


def _value(score: Score | None) -> float:
    if score is None or score.loss is None:
        return -math.inf
    return score.quality if score.quality is not None else -score.loss
