"""The transitions of a job."""

from enum import StrEnum

from fedcybgd.coordinator.domain.jobs.kinds import JobState
from fedcybgd.coordinator.domain.machine import Machine


class JobEvent(StrEnum):
    TAKE = "take"
    SKIP = "skip"
    FINISH = "finish"
    FAIL = "fail"
    INTERRUPT = "interrupt"
    REPEAT = "repeat"


JOB = Machine(
    "job", JobState, JobEvent, JobState.QUEUED,
    {
        (JobState.QUEUED, JobEvent.TAKE): JobState.RUNNING,
        (JobState.QUEUED, JobEvent.SKIP): JobState.SKIPPED,
        (JobState.RUNNING, JobEvent.FINISH): JobState.DONE,
        (JobState.RUNNING, JobEvent.FAIL): JobState.FAILED,
        (JobState.RUNNING, JobEvent.INTERRUPT): JobState.QUEUED,
        (JobState.FAILED, JobEvent.REPEAT): JobState.QUEUED,
    },
)  # fmt: skip
