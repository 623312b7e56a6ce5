"""Draws a run in the terminal: block map, who trains what, loss, accuracy, megabytes."""

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedcybgd.coordinator.commands.output import moment
from fedcybgd.coordinator.commands.score_table import scores
from fedcybgd.shared.contract.assignments import Progress
from fedcybgd.shared.contract.sizes import counted
from fedcybgd.shared.contract.training import TrainMetrics
from fedcybgd.shared.contract.views import MemberView, RunView

STYLES = {"running": "green", "paused": "yellow", "completed": "green", "failed": "red", "cancelled": "red", "draft": "dim"}

TOLD = ("label_skew", "labels_forgotten", "single_label")
"""Codes of events that whoever watches a run should read at once: they say what to do about its labels"""


def draw(run: RunView) -> RenderableType:
    """The whole view of a run, from the answer of `GET /v1/runs/{run}`."""
    parts: list[RenderableType] = [_heading(run), _progress(run), _blocks(run), *_current(run)]
    if run.evaluations:
        parts.append(scores(run.evaluations, run.anchor))
    return Group(*parts)


def _heading(run: RunView) -> Text:
    text = Text.assemble(
        (run.name, "bold"),
        "  ",
        (run.state, STYLES.get(run.state, "")),
        f"  model {run.model}, ",
        counted(run.participant_count, "agent"),
    )
    if run.reason:
        text.append(f"\n{run.reason}", "" if run.state == "completed" else "red")
    if run.anchor_of:
        text.append(f"\nthe anchor of {run.anchor_of}: its head alone")
    if run.conclusion:
        text.append(f"\n{run.conclusion.in_words()}")
    for note in run.notes:
        text.append(f"\nnote: {note}", "yellow")
    for event in reversed(run.events):
        if event.code in TOLD:
            text.append(f"\n{event.code}: {event.message}", "yellow")
    if run.failed_measurements:
        text.append(f"\n{run.failed_measurements} scores, losses or fidelities could not be measured; the events say why", "red")
    return text


def _progress(run: RunView) -> Table:
    grid = Table.grid(padding=(0, 2))
    left = f"about {run.seconds_left / 60:.1f} min left" if run.seconds_left else ""
    if run.pace is not None and run.pace.still is not None:
        left = "stands still"
    moved = f"{run.bytes.down / 1e6:,.0f} MB down, {run.bytes.up / 1e6:,.0f} MB up"
    bar = ProgressBar(total=max(run.rounds_total, 1), completed=run.rounds_done, width=30)
    grid.add_row(bar, f"{run.rounds_done} of {run.rounds_total} rounds", moved, left)
    return grid


def _blocks(run: RunView) -> Columns:
    busy = {a.block: a for a in run.current if a.state in ("pending", "leased", "submitted")}
    panels = []
    for block in run.blocks:
        at = busy.get(block.name)
        style = "bold blue" if at else "green" if block.version else "dim"
        who = (at.agent or at.meant_for or "anyone") if at else ""
        panels.append(
            Panel(Text(f"v{block.version} {who}"), title=Text(block.name), border_style=style, width=max(16, len(block.name) + 6))
        )
    return Columns(panels)


def _current(run: RunView) -> list[RenderableType]:
    lines: list[RenderableType] = []
    if run.rounds:
        newest = run.rounds[0]
        text = f"round {newest.number}, cycle {newest.cycle}: {', '.join(newest.blocks)} – {newest.state}"
        lines.append(Text(text + (f", {newest.applied} of {len(newest.blocks)} applied" if len(newest.blocks) > 1 else "")))
    for assignment in run.current:
        text = f"  {assignment.block} – {assignment.agent or assignment.meant_for or 'anyone'}, {assignment.state}"
        if assignment.metrics is not None and assignment.state != "leased":
            text += _done(assignment.metrics)
        elif assignment.progress:
            text += _far(assignment.progress)
        if assignment.reason:
            text += f" ({assignment.reason})"
        lines.append(Text(text))
    return lines


def _done(metrics: TrainMetrics) -> str:
    """What a visit came to: the last that was heard while it went on is of some step before the end."""
    return f", {metrics.steps} steps, loss {metrics.loss_last:.3f}, {metrics.tokens_per_s:,.0f} tokens/s"


def _far(progress: Progress) -> str:
    """How far a visit is; an agent need not say all of it."""
    if not progress.steps:
        return f", {progress.phase}"
    text = f", step {progress.step} of {progress.steps}"
    if progress.loss is not None:
        text += f", loss {progress.loss:.3f}"
    return text + (f", {progress.tokens_per_s:,.0f} tokens/s" if progress.tokens_per_s is not None else "")


def members_in_words(members: list[MemberView], absent_only: bool = False, most: int = 20) -> list[str]:
    """Lines that say who takes part in a run, and who does not yet, and why."""
    taking = [m for m in members if m.participant and m.takes_part]
    others = [m for m in members if not (m.participant and m.takes_part)]
    lines = [] if absent_only else [f"  {m.agent}: {_standing(m)}" for m in taking[:most]]
    if not absent_only and len(taking) > most:
        lines.append(f"  and {len(taking) - most} more")
    if others:
        begun = "no part in the open round (who is there and has data that fit joins with the next):"
        lines.append(begun if any(m.participant for m in members) else "who is there, before the start:")
        lines += [f"  {m.agent}: {_standing(m)}" for m in others[:most]]
        lines += [f"  and {len(others) - most} more"] if len(others) > most else []
    return lines


def _standing(member: MemberView) -> str:
    match member.standing:
        case "ready":
            rows = "" if member.rows is None else f", {member.rows:,} rows{'' if member.exact else ' or more'}"
            return f"ready{rows}"
        case "unheard":
            return "there; it has not said yet whether its data fit"
        case "unfit":
            return f"no data that fit ({member.reason}); `fedagent check` on its machine says more"
        case "silent":
            return f"silent, last seen {moment(member.last_seen_at)} UTC"
        case "quarantined":
            return "in quarantine: it is asked for nothing for a while; `fedcoord agents release` ends that"
        case _:
            return "never seen: `fedagent run` was not started there yet"
