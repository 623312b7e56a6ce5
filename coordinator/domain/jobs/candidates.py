"""What making and scoring the candidates of a run takes and gives."""

from pydantic import BaseModel, Field

from fedcybgd.coordinator.domain.jobs.measurements import EvaluatePayload, EvaluateResult
from fedcybgd.coordinator.domain.jobs.payloads import Change
from fedcybgd.shared.contract.manifests import ShardRef


class AverageTerm(BaseModel):
    """A version of a block, as part of an average."""

    version: int
    rounds: int = Field(ge=1)
    """how many of the rounds that are averaged over ended with it: its weight"""


class CandidateBlock(BaseModel):
    """A block of a candidate: which versions it is the mean of, and how they are made."""

    base: ShardRef
    """exact, and kept"""
    changes: list[Change]
    """what led from it to the last of the versions"""
    rounds: list[int]
    """of the base and of what each change makes: its weight in the mean, 0 for those that are only on the way"""
    last: ShardRef
    """what comes of all changes"""


class CandidatePayload(BaseModel):
    """A candidate, by its blocks that are not their last versions; without any it is the last version itself."""

    terms: dict[str, list[AverageTerm]]
    blocks: list[CandidateBlock]
    """in the same order"""


class ConcludePayload(BaseModel):
    after_rounds: int
    versions: dict[str, int]
    """of all blocks, when this was decided"""
    average: CandidatePayload
    best: CandidatePayload
    """a version for each block, of weight 1"""
    best_after: int
    """how many rounds"""
    scoring: EvaluatePayload | None
    """the present model, and the rows that the average is scored on; None: it is not"""


class ConcludeResult(BaseModel):
    average: list[ShardRef]
    best: list[ShardRef]
    score: EvaluateResult | None
    """of the average; None: it was not to be scored, or has no finite loss"""
