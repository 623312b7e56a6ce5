"""What a run file may ask of the end of its run, by what is scored."""

import pytest

from fedcybgd.coordinator.domain.run_file import parse_run_file
from tests.unit.test_run_file import SMALLEST, problems

ONCE = "evaluate: {held_out: rows.csv, every: end}\n"


@pytest.mark.parametrize(
    ("more", "field", "says"),
    [
        ("average_versions: {last: 0.5}", "average_versions", "no held-out rows say what is better: give `evaluate`, or `keep: average`"),
        ("keep_best: true", "keep_best", "a best that was never scored: give `evaluate`"),
        ("stop: {patience: 2}", "stop", "a best that was never scored: give `evaluate`"),
        (ONCE + "keep_best: true", "keep_best", "one score, and no best"),
        (ONCE + "stop: {patience: 2}", "stop", "one score, and no best"),
        ("evaluate: {held_out: rows.csv}\naverage_versions: {last: 1, keep: average}\nkeep_best: true", "keep_best", "take one of the two"),
    ],
)
def test_a_best_needs_scores(more: str, field: str, says: str) -> None:
    [(line, named, message)] = problems(SMALLEST + more)
    assert (line, named) == (len((SMALLEST + more).splitlines()), field)
    assert says in message


def test_an_average_needs_no_scores_where_it_is_kept_unseen() -> None:
    assert parse_run_file(SMALLEST + "average_versions: {last: 0.5, keep: average}").average_versions is not None
    run = parse_run_file(SMALLEST + ONCE + "average_versions: {last: 0.5}\nkeep_best: false")
    assert (run.keep_best, run.calibrate, run.stop) == (False, False, None)
