"""What a run file says of how its run ends."""

from typing import Literal

from pydantic import Field

from fedcybgd.coordinator.domain.section import Section


class AverageVersionsSection(Section):
    last: float = Field(gt=0, le=1, description="part of the rounds, the last ones, over which the versions of each block are averaged")
    keep: Literal["better", "average"] = Field(
        "better", description="better: the average or the last version, as the held-out rows say; average: the average, whatever they say"
    )


class StopSection(Section):
    patience: int = Field(
        ge=1, le=10_000, description="scores one after another that are no better than the best before them, and the run ends early"
    )


def check_scores(
    value: AverageVersionsSection | StopSection | bool | None, every: str | int | None, average: AverageVersionsSection | None
) -> None:
    """Raises `ValueError` for a wish that the scores of the run cannot fulfil. `every`: how often it is scored; None: never."""
    if isinstance(value, AverageVersionsSection):
        if value.keep == "better" and every is None:
            raise ValueError("no held-out rows say what is better: give `evaluate`, or `keep: average`")
    elif value and every is None:
        raise ValueError("a best that was never scored: give `evaluate`")
    elif value and every == "end":
        raise ValueError("with `evaluate.every: end` there is one score, and no best: score more often")
    elif value is True and average is not None and average.keep == "average":
        raise ValueError("`average_versions.keep: average` keeps the average, whatever scored best: take one of the two")


def check_calibration(task: str, is_classification: bool, is_scored: bool) -> None:
    """Raises `ValueError` for a calibration that nothing can be fitted to."""
    if not is_classification:
        raise ValueError(f"what is calibrated is the head of a classifier, and {task} has none: leave it out")
    if not is_scored:
        raise ValueError("a head is calibrated on held-out rows: give `evaluate`")
