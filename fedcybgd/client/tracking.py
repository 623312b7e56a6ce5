"""Writes the series of a run into trackers: what there is so far, then what comes; each point once, however often it is begun."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from fedcybgd.client.connection import DAY_S, Connection
from fedcybgd.client.runs import Runs, has_ended
from fedcybgd.client.trackers.base import Key, Point, Tracked, Tracker, plain_name
from fedcybgd.shared.contract.measured import Score
from fedcybgd.shared.contract.views import EvaluationView, RoundView, RunView

NUMBERS = tuple(name for name in Score.model_fields if name not in ("rows", "seconds", "spent", "failed", "labels_held_out"))
"""Of a score, what becomes a curve"""
LABELS_AT_ONCE = 1000
GROWS, CALM = 1.5, 8.0
"""While nothing moves it is looked ever more rarely, down to an eighth as often: points have times of their own, and none is lost"""


def track(connection: Connection, run: str, trackers: Sequence[Tracker], follow: bool, labels: bool, every_s: float) -> tuple[RunView, int]:
    """See `Runs.track`."""
    runs = Runs(connection)
    view = runs.get(run)
    tracked = Tracked(view.id, view.name, dict(parameters(view.spec)))
    there: list[set[Key]] = []
    written = 0
    opened: list[Tracker] = []
    try:
        for tracker in trackers:
            opened.append(tracker)
            there.append(tracker.open(tracked))
        before: RunView | None = None
        wait_s = every_s
        while True:
            ended, moved = has_ended(view) or not follow, before is None or _moved(before, view)
            if ended or moved:
                # The lists as a whole when it begins, when it ends, and after a gap; else the newest, which the run itself has.
                whole = ended or before is None or _gap(before, view)
                points = list(_points(runs, view, whole))
                for tracker, known in zip(trackers, there, strict=True):
                    new = [point for point in points if point.key not in known]
                    if labels:
                        # First: a score that is there says that all of its labels are, also where somebody was killed meanwhile.
                        new = [*(point for point in _labels(runs, view, new) if point.key not in known), *new]
                    tracker.write(new, dict(_tags(runs, view)))
                    known |= {point.key for point in new}
                    written += len(new)
            if ended:
                return view, written
            before, wait_s = view, next_wait_s(wait_s, every_s, moved)
            time.sleep(wait_s)
            view = connection.patiently(partial(runs.get, view.id), limit=DAY_S)
    finally:
        for tracker in opened:
            tracker.close(view.state)


def next_wait_s(last_s: float, every_s: float, moved: bool) -> float:
    """Seconds until it is looked again."""
    return every_s if moved else min(GROWS * last_s, CALM * every_s)


def parameters(spec: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and value of every field of a run file that says something."""
    if isinstance(spec, Mapping):
        for key, value in spec.items():
            yield from parameters(value, f"{name}.{key}" if name else str(key))
    elif spec is not None:
        yield plain_name(name), spec if isinstance(spec, str) else json.dumps(spec)


def _moved(before: RunView, now: RunView) -> bool:
    """Whether there may be points that were not there, or other words."""
    return any(getattr(before, name) != getattr(now, name) for name in ("state", "reason", "rounds", "evaluations", "pending_jobs"))


def _gap(before: RunView, now: RunView) -> bool:
    oldest = now.rounds[-1].number if now.rounds else 0
    return oldest > before.rounds_done


def _points(runs: Runs, view: RunView, whole: bool) -> Iterator[Point]:
    closed: dict[int, RoundView] = {}
    for round in runs.rounds(view.id) if whole else view.rounds:
        yield from _of_round(round)
        if round.closed_at is not None:
            closed[round.number] = round
    for evaluation in runs.evaluations(view.id) if whole else view.evaluations:
        yield from _of_score("score", evaluation, evaluation)
    if whole:
        yield from _bytes(runs, view, closed)
    if view.conclusion is not None and view.conclusion.score is not None and view.ended_at is not None:
        ended = EvaluationView(after_rounds=view.rounds_done, created_at=view.ended_at, **dict(view.conclusion.score))
        yield from _of_score("ended_with", ended, view.conclusion.score)


def _of_score(word: str, place: EvaluationView, score: Score) -> Iterator[Point]:
    numbers = {f"{word}/{name}": getattr(score, name) for name in NUMBERS}
    if word == "score" and score.spent is not None:
        numbers |= {f"spent/{name}": value for name, value in dict(score.spent).items()}
    for name, value in numbers.items():
        if value is not None:
            yield Point(name, place.after_rounds, float(value), place.created_at)


def _of_round(round: RoundView) -> Iterator[Point]:
    """Held-out loss of the real model on the calibration rows, how faithful the emulators were, and how long it took."""
    if round.number == 0 and round.loss_before is not None:
        yield Point("calibration/loss", 0, round.loss_before, round.opened_at)
    if round.closed_at is None:
        return
    after = round.number + 1
    yield Point("round/seconds", after, (round.closed_at - round.opened_at).total_seconds(), round.closed_at)
    if round.loss_after is not None:
        yield Point("calibration/loss", after, round.loss_after, round.closed_at)
    cosines = [measured.cosine for measured in round.fidelity if measured.cosine is not None]
    if cosines:
        yield Point("fidelity/lowest_cosine", after, min(cosines), round.closed_at)


def _bytes(runs: Runs, view: RunView, closed: Mapping[int, RoundView]) -> Iterator[Point]:
    """All that had crossed the wire by the end of each round."""
    moved: dict[int, dict[str, int]] = {}
    for entry in runs.traffic(view.id):
        direction = "up" if entry.kind == "delta" else "down"
        of_round = moved.setdefault(entry.round, {"down": 0, "up": 0})
        of_round[direction] += entry.bytes
    total = {"down": 0, "up": 0}
    for number, round in sorted(closed.items()):
        for direction, count in moved.get(number, {}).items():
            total[direction] += count
        if round.closed_at is not None:
            for direction, count in total.items():
                yield Point(f"bytes/{direction}", number + 1, float(count), round.closed_at)


def _labels(runs: Runs, view: RunView, new: Sequence[Point]) -> list[Point]:
    """Recall and F1 of each label, of the classifier's scores that are new."""
    found: list[Point] = []
    for score in (point for point in new if point.name == "score/accuracy"):
        skip, of = 0, 1
        while skip < of:
            some = runs.label_scores(view.id, score.step, order="label", skip=skip, limit=LABELS_AT_ONCE)
            skip, of = skip + LABELS_AT_ONCE, some.labels
            for one in some.scores:
                called = str(one.label) if one.name is None else f"{one.label} {one.name.replace('/', '_')}"
                for measure, value in (("recall", one.recall), ("f1", one.f1)):
                    if value is not None:
                        found.append(Point(plain_name(f"label/{called}/{measure}"), score.step, value, score.at))
    return found


def _tags(runs: Runs, view: RunView) -> Iterator[tuple[str, str]]:
    """The run's words, and the digests of the newest export's weights."""
    yield from (("run", view.name), ("run_id", view.id), ("model", view.model), ("state", view.state))
    yield "rounds", f"{view.rounds_done} of {view.rounds_total}"
    if view.reason:
        yield "reason", view.reason
    newest = next((export for export in runs.exports(view.id) if export.state == "done"), None)
    if newest is not None:
        yield "export", f"{newest.export_id}, after {newest.after_rounds} rounds"
        for file in newest.files:
            if file.name.endswith(".safetensors"):
                yield f"export.{file.name}", file.digest
