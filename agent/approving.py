"""`fedagent approve`."""

from typing import Annotated

import typer

from fedcybgd.agent.options import HomeOption, Json, say_json
from fedcybgd.agent.settings import Home
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.host.exits import Exit
from fedcybgd.shared.host.terminal import Terminal

terminal = Terminal()


def approve(
    run: Annotated[str, typer.Argument(help="Name of a run that is open to this agent; `fedagent check` lists them.")],
    data: Annotated[str | None, typer.Option(help="Name of the data set that it may use, where agent.toml has several.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Agree without being asked.")] = False,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Let a run use this agent's rows: say what it would do with them, ask, and write its name into agent.toml. A daemon that runs notices."""
    from fedcybgd.agent.approval import Approval  # it takes a while to load

    approval = Approval(Home(home), run, data)
    if not approval.given:
        asking = Terminal(stderr=as_json)
        for sentence in approval.terms():
            asking.say(f"- {one_line(sentence)}")
        if not yes:
            typer.confirm(f"May run {approval.run.name} use these rows?", abort=True, err=as_json)
    verdict = approval.give()
    fits = verdict.reason is None
    if as_json:
        say_json({"run": approval.run.name, "data": approval.data, "fits": fits, "reason": verdict.reason, "rows": verdict.rows})
    elif fits:
        terminal.say(f"run {approval.run.name} may use [data.{approval.data}], which fits: {verdict.rows} rows")
    else:
        terminal.say(f"run {approval.run.name} may use [data.{approval.data}], which does not fit: {verdict.message}")
    if not fits:
        raise typer.Exit(Exit.FAILED)
