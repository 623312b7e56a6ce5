"""What making and scoring the candidates of a run takes and gives."""

from pydantic import BaseModel, Field

from fedcybgd.coordinator.domain.jobs.measurements import EvaluatePayload, EvaluateResult
from fedcybgd.coordinator.domain.jobs.payloads import Change
from fedcybgd.shared.contract.manifests import ShardRef
from fedcybgd.shared.contract.measured import Score


class AverageTerm(BaseModel):
    """A version of a block, as part of an average."""

    version: int
    rounds: int = Field(ge=1)
    """how many of the rounds that are averaged over ended with it: its weight"""


class HeadCalibration(BaseModel):
    """What the last matrix of a head and its bias become, so that its logits are `scale` times what they were, and `shift` more."""

    weight: str
    """name of the matrix"""
    bias: str | None
    """None: there is none, and no shift"""
    scale: float = Field(gt=0)
    """1 / temperature"""
    shift: list[float]
    """for each label"""


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
    calibration: HeadCalibration | None = None
    """what is done to the mean at last"""


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
    scores: dict[str, Score] = Field({})
    """of the candidates that are scored already"""
    keep_average: bool = False
    """whatever the scores say"""
    calibrate: bool = False
    """the head of the candidate that is kept"""


class CalibrateResult(BaseModel):
    of: str
    """the candidate"""
    before: EvaluateResult
    after: EvaluateResult
    """on the same rows, each half with what the other half made of it"""
    calibration: HeadCalibration
    """of all of these rows"""
    head: ShardRef | None
    """None: it does not help on rows that it was not fitted to"""


class ConcludeResult(BaseModel):
    average: list[ShardRef]
    best: list[ShardRef]
    score: EvaluateResult | None
    """of the average; None: it was not to be scored, or has no finite loss"""
    calibrated: CalibrateResult | None = None
    """None: it was not to be, or its logits are not finite, or too few"""
