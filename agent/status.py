"""What the agent on this machine is doing, as its files say: for `fedagent status`, which asks nobody but them, and the coordinator once."""

import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedcybgd.agent import reaching, sent
from fedcybgd.agent.credentials import Credentials
from fedcybgd.agent.errors import AgentError
from fedcybgd.agent.sent import Sent
from fedcybgd.agent.settings import Home
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.contract.sizes import counted, in_units

HANGS_AFTER_S = 900.0
"""Without a sign it hangs: longer than anything that it does between two"""


class CoordinatorView(BaseModel):
    """What the coordinator says of this agent, or why it says nothing."""

    state: str | None = None
    runs: dict[str, str] = {}
    """name → state of those that are open to it"""
    error: str | None = None


class StatusReport(BaseModel):
    """Everything that `fedagent status` shows."""

    agent: str
    agent_id: str
    home: str
    alive: bool
    """its daemon runs"""
    sign_s: float | None
    """seconds since it has given a sign that it works: it was answered, or waited on purpose; None: never"""
    status: dict[str, Any] | None
    """as the daemon wrote it last; None: it has not run yet"""
    cache_bytes: int
    cache_limit: int | None
    outbox: int
    """deltas that wait to be sent"""
    sent: list[Sent]
    coordinator: CoordinatorView | None = None

    @property
    def well(self) -> bool:
        """It runs, and does not hang."""
        return self.alive and self.sign_s is not None and self.sign_s < HANGS_AFTER_S


def gathered(home: Home, mine: Credentials, coordinator: CoordinatorView | None = None) -> StatusReport:
    """From the files of the home; a file that is being written, or is gone by now, is as if it were not there."""
    try:
        status = json.loads(home.status.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        status = None
    try:
        limit = int(reaching.load(home)[0].limits.disk_gb * 1e9)
    except AgentError:
        limit = None
    alive = status is not None and status["state"] != "stopped" and psutil.pid_exists(status["pid"])
    try:
        sign_s = max(0.0, time.time() - home.sign.stat().st_mtime)
    except OSError:
        sign_s = None
    waiting = sum(1 for _ in home.outbox.glob("*.json"))
    return StatusReport(
        agent=mine.name, agent_id=mine.agent_id, home=str(home.path), alive=alive, sign_s=sign_s, status=status, cache_bytes=size_of(home.cache),
        cache_limit=limit, outbox=waiting, sent=sent.read(home.sent), coordinator=coordinator,
    )  # fmt: skip


def for_anybody(view: StatusReport) -> StatusReport:
    """The same for everybody on this machine: of errors what a coordinator may hear too, for the whole may quote a row."""
    if view.status is None:
        return view
    status = {name: value for name, value in view.status.items() if name not in ("error", "error_at")}
    status["errors"] = [{"error": one.get("told") or "an error", "error_at": one["error_at"]} for one in status.get("errors", ())]
    status["takes_no_work_of"] = [{**one, "message": ""} for one in status.get("takes_no_work_of", ())]
    return view.model_copy(update={"status": status})


def asked(home: Home, mine: Credentials) -> CoordinatorView:
    """Of the coordinator, once."""
    try:
        me = reaching.client(home, *reaching.load(home), mine).me()
    except AgentError as error:
        return CoordinatorView(error=error.message)
    return CoordinatorView(state=me.state, runs={run.name: run.state for run in me.runs})


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # gone meanwhile
            continue
    return total


# ---- for people


def draw(view: StatusReport) -> RenderableType:
    """All parts at once, for who goes on looking."""
    return Group(*parts(view))


def parts(view: StatusReport) -> Iterator[RenderableType]:
    """Line by line, then a table of what has left this machine."""
    yield Text(f"agent {view.agent} ({view.agent_id}) in {view.home}")
    if view.status is None:
        yield Text("it has not run yet: fedagent run")
        return
    status = view.status
    state = status["state"] if view.alive else "not running"
    yield Text(f"{state} (at {at(status['at'])}), {counted(status['visits'], 'visit')} done")
    if view.alive and status.get("block"):
        yield from _visit(status)
    if view.alive:
        last, following = status.get("contact_at"), status.get("next_contact_at")
        said = [f"the coordinator answered last at {at(last)}"] if last else []
        said += [f"it is spoken to again by {at(following)} at the latest"] if following else []
        if said:
            yield Text("; ".join(said))
    for error in status.get("errors") or ([status] if status.get("error") else []):
        yield Text(f"error at {at(error.get('error_at', status['at']))}: {one_line(error['error'])}", "red")
    if status.get("walls"):
        yield Text(f"training process: {one_line(status['walls'])}")
    for refused in status.get("takes_no_work_of", ()):
        yield Text(f"takes no work of run {refused['run']}: {refused['reason']}: {one_line(refused['message'])}", "yellow")
    waiting = f"; {view.outbox} deltas wait to be sent" if view.outbox else ""
    yield Text(f"{cached(view)}{waiting}")
    if (site := status.get("site_cache")) is not None:
        yield Text(site_cache(site), "yellow" if site["trouble"] else "")
    yield _left(view.sent)
    if (said_of := view.coordinator) is not None:
        if said_of.error is not None:
            yield Text(f"coordinator: {said_of.error}", "red")
        else:
            runs = ", ".join(f"{name} ({state})" for name, state in said_of.runs.items()) or "none"
            yield Text(f"the coordinator says: {said_of.state}; open runs: {runs}")


def cached(view: StatusReport) -> str:
    """How full the cache is."""
    return f"cache: {in_units(view.cache_bytes)}" + (f" of {in_units(view.cache_limit)}" if view.cache_limit is not None else "")


def site_cache(shown: dict[str, Any]) -> str:
    """In a sentence."""
    text = f"site cache at {one_line(shown['url'])}: {shown['bytes'] / 1e6:,.1f} MB from it since the start"
    if shown["trouble"]:
        text += f"; it did not serve: {one_line(shown['trouble'])}" + ("" if shown["asked"] else "; the coordinator is asked meanwhile")
    return text


def _visit(status: dict[str, Any]) -> Iterator[RenderableType]:
    text = f"round {status['round']} of {status['run']}: {status['block']}, {status['phase']}, step {status['step']} of {status['steps']}"
    if status.get("loss") is not None:
        text += f", loss {status['loss']:.3f}"
    if status.get("tokens_per_s") is not None:
        text += f", {status['tokens_per_s']:,.0f} tokens/s"
    yield Text(text)
    if status["steps"]:
        # Alone it ends no line, and the next part would follow in it.
        yield Padding(ProgressBar(total=status["steps"], completed=status["step"], width=40), 0)
    if status.get("trouble"):
        yield Text(f"held up: {status['trouble']['code']}", "yellow")


def _left(ledger: list[Sent]) -> RenderableType:
    """What has left this machine, to whom."""
    if not ledger:
        return Text("no delta has left this machine yet")
    table = Table("left this machine for", "run", "deltas", "MB sent", "MB fetched", "last", box=None, padding=(0, 1))
    for one in reversed(ledger[-20:]):
        megabytes = f"{one.bytes_sent / 1e6:,.1f}", f"{one.bytes_fetched / 1e6:,.1f}"
        table.add_row(one.coordinator, one.run, str(one.deltas), *megabytes, at(one.last_at))
    return table


def at(moment: str) -> str:
    return f"{datetime.fromisoformat(moment):%Y-%m-%d %H:%M:%S} UTC"
