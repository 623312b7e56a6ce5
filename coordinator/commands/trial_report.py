"""What `fedcoord try` says: who has which rows, and in the end what the run came to."""

from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, Field

from fedcybgd.coordinator.commands.score_table import scores
from fedcybgd.local.rows import Portion
from fedcybgd.local.split import Split
from fedcybgd.shared.contract.sizes import counted
from fedcybgd.shared.contract.views import RunView
from fedcybgd.shared.host.terminal import Terminal

SHOWN = 12
"""Agents in the list of rows"""


class TrialReport(BaseModel):
    """For programs."""

    run: RunView
    agents: dict[str, int] = Field(description="rows of each agent, by its name")
    visits: int
    seconds: float
    killed: list[str] = Field([], description="agents that were killed and started again, as often as they were")
    export: str | None = None
    kept: str | None = None


def say_portions(portions: Sequence[Portion], split: Split, terminal: Terminal) -> None:
    named = {
        "iid": "evenly",
        "dirichlet": f"by labels that are unlike (Dirichlet, {split.alpha:g})",
        "column": f"by column {split.column!r}",
    }
    terminal.say(f"{sum(portion.rows for portion in portions):,} rows are dealt out {named[split.kind]}:")
    for portion in portions[:SHOWN]:
        labels = f", {counted(len(portion.labels), 'label')}" if portion.labels else ""
        commonest = f", the commonest on {max(portion.labels.values()) / portion.rows:.0%}" if len(portion.labels) > 1 else ""
        of = f" ({', '.join(portion.values[:3])}{' …' if len(portion.values) > 3 else ''})" if portion.values else ""
        terminal.say(f"  {portion.name}{of}: {counted(portion.rows, 'row')}{labels}{commonest}")
    if len(portions) > SHOWN:
        terminal.say(f"  and {len(portions) - SHOWN} more")


def say(report: TrialReport, terminal: Terminal) -> None:
    run = report.run
    rounds = f"{run.rounds_done} of {run.rounds_total} rounds"
    terminal.say(
        f"\nrun {run.name} is {run.state} after {rounds} and {counted(report.visits, 'visit')}, in {report.seconds / 60:.1f} minutes with all that is around it"
    )
    if run.conclusion is not None:
        terminal.say(run.conclusion.in_words())
    if run.evaluations:
        terminal.table(scores(run.evaluations, run.anchor, shown=len(run.evaluations)))
    moved = run.bytes.down + run.bytes.up
    terminal.say(f"moved {moved / 1e6:,.1f} MB ({run.bytes.down / 1e6:,.1f} to agents, {run.bytes.up / 1e6:,.1f} back)" + _instead(report))
    if report.killed:
        told = ", ".join(f"{name}{f' ({times} times)' if times > 1 else ''}" for name, times in Counter(report.killed).items())
        terminal.say(f"killed while they trained, and started again: {told}")
    if report.export is not None:
        terminal.say(f"the model: {report.export}; ask it: fedcoord predict {report.export} --data ROWS")
    if report.kept is not None:
        terminal.say(f"kept: {report.kept}; to look at it again: fedcoord serve --home {report.kept}/coordinator")


def _instead(report: TrialReport) -> str:
    """What averaging whole models in float32 would have moved in as many visits: each down and up again."""
    if "method" in report.run.spec and report.run.spec["method"] != "block-cycle":
        return ""
    whole = 2 * report.visits * sum(4 * block.num_parameters for block in report.run.blocks)
    return f"; averaging whole models in as many visits would have moved {whole / 1e6:,.1f}"
