"""What a command says of predictions: the first of them as a table, and of all together a few numbers."""

from collections import Counter

from rich.table import Table

from fedcybgd.coordinator.commands.output import Facts
from fedcybgd.coordinator.domain.answer_tally import AnswerCandidate, AnswerTally
from fedcybgd.coordinator.domain.label_tally import LabelTally
from fedcybgd.coordinator.domain.mean_loss import MeanLoss
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.contract.predictions import Prediction
from fedcybgd.shared.contract.sizes import counted
from fedcybgd.shared.contract.task import TaskSpec
from fedcybgd.shared.files.tables import Row
from fedcybgd.shared.host.terminal import Terminal

SHOWN = 10
"""Rows in the table"""
WIDEST = 60
"""Characters of a text in it"""
COMMONEST = 5


class PredictionTally:
    def __init__(self, spec: TaskSpec) -> None:
        self._spec = spec
        self._rows = self._tokens = 0
        self._continued = False
        self._labels, self._loss = Counter[int](), MeanLoss()
        self._given, self._answers = LabelTally.empty(spec.num_labels or 0), AnswerTally()
        self._answered = 0
        self._table = Table(box=None, padding=(0, 2))

    def add(self, one: Prediction, row: Row) -> None:
        """`row` may have a label or answers; then it counts whether it came out."""
        self._rows += 1
        self._tokens += one.tokens or 0
        if one.label is not None:
            self._labels[one.label] += 1
            if "label" in row:
                self._given.add([row["label"]], [one.label])
        if one.answer is not None and one.margin is not None and "answers" in row:
            self._answered += 1
            self._answers.add(AnswerCandidate(one.answer, [answer.text for answer in row["answers"]], rather_nothing=one.margin < 0))
        if one.loss is not None and one.tokens:
            self._loss.add([one.loss * one.tokens], [one.tokens])
        self._continued = one.continuation is not None
        if self._rows <= SHOWN:
            self._show(one, row)

    def _show(self, one: Prediction, row: Row) -> None:
        text = one_line(str(row.get("text") or row.get("prompt") or row.get("question") or ""))
        cells = {"row": str(self._rows)}
        if one.label is not None:
            cells |= {"label": self._called(one.label), "probability": f"{one.probability:.1%}"}
            cells |= {"expected": self._called(row["label"])} if "label" in row else {}
        if one.continuation is not None:
            cells |= {"prompt": f"…{text[-WIDEST:]}" if len(text) > WIDEST else text, "goes on": one_line(one.continuation)}
        elif one.answer is not None:
            cells |= {"question": _cut(text), "answer": _cut(one_line(one.answer)), "margin": f"{one.margin:.1f}"}
            text = ""
        elif one.label is None:
            cells |= {"loss": "–" if one.loss is None else f"{one.loss:.3f}", "tokens": f"{one.tokens:,}"}
        if one.continuation is None and text:
            cells["text"] = _cut(text)
        if not self._table.columns:
            for name in cells:
                self._table.add_column(name)
        self._table.add_row(*cells.values())

    def _called(self, label: int) -> str:
        return self._spec.label_names[label] if self._spec.label_names else str(label)

    def show(self, terminal: Terminal, model: str) -> None:
        terminal.say(f"{model} ({self._spec.task}):")
        terminal.table(self._table)
        more = f" (the first {SHOWN} are shown)" if self._rows > SHOWN else ""
        terminal.say(f"{counted(self._rows, 'row')}{more}")
        for line in self._lines():
            terminal.say(line)

    def _lines(self) -> list[str]:
        lines = []
        if self._labels:
            commonest = self._labels.most_common(COMMONEST)
            said = ", ".join(f"{self._called(label)} {count / self._rows:.1%}" for label, count in commonest)
            lines.append(f"labels: {said}{' …' if len(self._labels) > COMMONEST else ''}")
        if self._given.held_out:
            given = self._given
            lines.append(
                f"accuracy {given.accuracy:.2%} ± {given.accuracy_error:.2%} against the labels in the file; "
                f"saying the commonest label always: {given.majority:.2%}"
            )
        if self._answered:
            found = self._answers
            scores = ((found.f1, found.f1_error), (found.exact_match, found.exact_match_error))
            f1, exact = (f"{score:.2%}{'' if error is None else f' ± {error:.2%}'}" for score, error in scores)
            lines.append(f"F1 {f1}, exact match {exact} against the answers in the file")
        if self._continued:
            lines.append(f"{self._tokens:,} tokens written, always the likeliest")
        elif self._loss.predictions:
            error = self._loss.error
            lines.append(
                f"loss {self._loss.mean:.4f}{'' if error is None else f' ± {error:.4f}'} nats a token, over {self._tokens:,} tokens"
            )
        return lines

    def facts(self) -> Facts:
        """The same numbers for programs; None for what the rows do not tell."""
        given = self._given
        return {
            "rows": self._rows, "accuracy": given.accuracy if given.held_out else None,
            "accuracy_error": given.accuracy_error if given.held_out else None, "majority": given.majority if given.held_out else None,
            "f1": self._answers.f1 if self._answered else None, "exact_match": self._answers.exact_match if self._answered else None,
            "loss": self._loss.mean if self._loss.predictions else None, "tokens": self._tokens or None,
        }  # fmt: skip


def _cut(text: str) -> str:
    return f"{text[:WIDEST]}…" if len(text) > WIDEST else text
