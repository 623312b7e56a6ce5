"""Where an agent stands with a run: whether it is there, and whether its data fit."""

from enum import StrEnum

from fedcybgd.coordinator.domain.agent import AgentState


class Standing(StrEnum):
    READY = "ready"
    UNHEARD = "unheard"
    UNFIT = "unfit"
    SILENT = "silent"
    NEVER_SEEN = "never_seen"
    QUARANTINED = "quarantined"


TAKES_PART = frozenset({Standing.READY, Standing.UNHEARD})
"""Who is there takes part from the start; whether its data fit an agent says within seconds, and is then planned with, or not."""


def standing_of(state: str, fits: bool | None, quarantined: bool = False) -> Standing:
    """Of an agent that is not revoked; `fits` is what it said of the run last, None: nothing."""
    if fits is False:
        return Standing.UNFIT
    if state != AgentState.ACTIVE:
        return Standing.SILENT if state == AgentState.SILENT else Standing.NEVER_SEEN
    if quarantined:
        return Standing.QUARANTINED
    return Standing.READY if fits else Standing.UNHEARD
