"""`fedcoord agents …`."""

import json
from typing import Annotated

import typer
from rich.table import Table

from fedcybgd.coordinator.operator import Operator
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.host.terminal import Terminal

app = typer.Typer(no_args_is_help=True, help="Enrol, list and revoke agents.")
terminal = Terminal()


@app.command()
def token(
    expires_in: Annotated[float, typer.Option(help="Seconds until the token expires unused.")] = 3600,
) -> None:
    """Make a token with which one agent can enrol, once."""
    operator = Operator()
    made = operator.post("/enrolment-tokens", {"expires_in_s": expires_in})
    terminal.say(made["token"])
    Terminal(stderr=True).say(
        f"\nOn the agent's machine, before {made['expires_at']}:\n  fedagent enroll {operator.url} --token {made['token']} --name NAME --data FILE --runs RUN"
    )


@app.command(name="list")
def list_agents(as_json: Annotated[bool, typer.Option("--json", help="The whole answer as JSON.")] = False) -> None:
    """All agents."""
    agents = Operator().get("/agents")
    if as_json:
        typer.echo(json.dumps(agents, indent=2))
        return
    table = Table("name", "state", "last seen", "device", "last error")
    for agent in agents:
        device = f"{agent['device']['kind']}, {agent['device']['cores']} cores"
        table.add_row(agent["name"], agent["state"], (agent["last_seen_at"] or "never")[:19], device, one_line(agent["last_error"] or ""))
    terminal.table(table)


@app.command()
def revoke(name: str) -> None:
    """Shut an agent out at once; what it holds is given to others."""
    agent = Operator().post(f"/agents/{name}/revoke")
    terminal.say(f"agent {agent['name']} is {agent['state']}")


@app.command()
def exposure(agent: Annotated[str | None, typer.Argument(help="Name; all if left out.")] = None) -> None:
    """Which agent has received which block, at which version and codec."""
    table = Table("agent", "run", "block", "version", "codec", "first at")
    params = {"agent": agent} if agent else {}
    for entry in Operator().get("/exposure", **params):
        table.add_row(entry["agent"], entry["run_id"], entry["block"], str(entry["version"]), entry["codec"], entry["first_at"][:19])
    terminal.table(table)
