"""The kinds of heavy work, and what becomes of a job."""

from enum import StrEnum


class JobKind(StrEnum):
    ADMIT = "admit"
    APPLY = "apply"
    PREPARE = "prepare"
    IMPORT = "import"
    EVALUATE = "evaluate"
    EXPORT = "export"
    ENCODE = "encode"
    INFLUENCE = "influence"
    IMPORTANCE = "importance"
    FIDELITY = "fidelity"
    LOSS = "loss"
    GATE = "gate"
    RESTORE = "restore"
    """older versions of blocks, as the present ones"""
    CONCLUDE = "conclude"
    """what a run may end with, made and scored"""
    MEND = "mend"
    """a blob that another job found missing or damaged"""


GIVES_WAY = frozenset({JobKind.ENCODE})
"""Of these one for each block of a model may wait: after each that was done, another kind is next."""


STANDS_ASIDE = frozenset({JobKind.IMPORT, JobKind.EXPORT})
"""Write a whole model, and nothing that comes after waits for them: one for which there is no room lets the others of its lane go first."""


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    """of a measurement: a newer one was wanted before it began"""


class Lane(StrEnum):
    QUICK = "quick"
    """an agent waits for these: they never stand behind an evaluation"""
    SLOW = "slow"


class OnFailure(StrEnum):
    """What the failure of a job means to its run."""

    REPEATED = "repeated"
    """it is paused, and the job is done again when it is resumed"""
    PAUSES = "pauses"
    """it is paused; what it still needs is asked for anew when it is resumed"""
    ENDS = "ends"
    """what was to be made does not come to be"""
    GOES_ON = "goes on"
    """the job only tells how the run goes"""
