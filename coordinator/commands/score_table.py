"""Draws the held-out scores of a run in the terminal, each with what it had cost by then."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from fedcybgd.shared.contract.measured import Score
from fedcybgd.shared.contract.score_words import ScoreKind, cells, kind_of, loss, measures
from fedcybgd.shared.contract.sizes import counted
from fedcybgd.shared.contract.views import AnchorView, EvaluationView, LabelScoresView, RunView

SHOWN = 8


def scores(evaluations: Sequence[EvaluationView], anchor: AnchorView | None = None, shown: int = SHOWN) -> Table:
    """The newest ones, before them that of the base model, and after them that of the head alone: what all others are measured against."""
    newest = list(evaluations[-shown:])
    if evaluations[0].after_rounds == 0 and evaluations[0] is not newest[0]:
        newest = [evaluations[0], *newest[1:]]
    kind = kind_of(newest)
    table = Table(
        "after\nrounds", *measures(kind), "held-out loss", "MB", "tokens", "minutes", box=None, padding=(0, 1), caption_justify="left",
        collapse_padding=True, pad_edge=False,
    )  # fmt: skip
    for e in newest:
        if e.failed:
            why = "skipped" if e.failed.code == "skipped" else f"failed: {e.failed.code}"
            table.add_row(str(e.after_rounds), Text(why, "dim" if why == "skipped" else "red"))
        else:
            table.add_row(str(e.after_rounds), *cells(e, kind), loss(e), *_spent(e))
    if anchor is not None:
        table.add_row(*_of_anchor(anchor, kind))
    if made := [e for e in newest if e.loss is not None]:
        table.caption = _told_of(made[-1])
    return table


def last_scored(run: RunView, scored: Sequence[int]) -> tuple[int, str | None]:
    """After how many rounds the model was scored that a run ended with, or the newest; and what is to be said where it was another one.

    `scored`: after how many rounds there are scores, the oldest first.
    """
    ended = run.conclusion
    if ended is None or ended.kept == "last":
        return scored[-1], None
    if ended.kept == "best":
        return (ended.best_after if ended.best_after in scored else scored[-1]), None
    return scored[-1], f"not of the model that the run ended with: {ended.in_words()}; of an average labels are not counted"


def of_labels(found: LabelScoresView) -> Table:
    """One of the evaluations, label by label."""
    table = Table("label", "recall", "precision", "F1", "rows", "taken for it", "right", box=None, padding=(0, 2), caption_justify="left")
    for one in found.scores:
        shares = ("–" if share is None else f"{share:.1%}" for share in (one.recall, one.precision, one.f1))
        called = str(one.label) if one.name is None else f"{one.label} {one.name}"
        table.add_row(called, *shares, f"{one.rows:,}", f"{one.guessed:,}", f"{one.right:,}")
    table.caption = f"after {counted(found.after_rounds, 'round')}; {len(found.scores)} of {found.labels} labels"
    return table


def _of_anchor(anchor: AnchorView, kind: ScoreKind) -> list[str | Text]:
    if anchor.score is None:
        return ["head alone", Text(anchor.state, "dim")]
    far = "" if anchor.state == "completed" else f", {anchor.rounds_done} of {anchor.rounds_total}"
    return [f"head alone{far}", *cells(anchor.score, kind), loss(anchor.score), *_spent(anchor.score)]


def _told_of(e: EvaluationView) -> str:
    said = [f"± is a standard error; {counted(e.rows, 'row')}"]
    if e.majority is not None:
        said.append(f"saying the commonest label always: {e.majority:.2%}")
    if e.labels_never_right:
        said.append(f"{e.labels_never_right} of {e.labels_held_out} labels never right")
    return "; ".join(said)


def _spent(e: Score) -> list[str]:
    if e.spent is None:
        return ["–", "–", "–"]
    return [f"{(e.spent.bytes_down + e.spent.bytes_up) / 1e6:,.0f}", f"{e.spent.tokens:,}", f"{e.spent.seconds / 60:.1f}"]
