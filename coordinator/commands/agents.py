"""`fedcoord agents …`."""

from itertools import islice
from typing import Annotated

import typer
from rich.table import Table

from fedcybgd.client.client import Client
from fedcybgd.coordinator.commands.completing import AGENTS, Agent
from fedcybgd.coordinator.commands.given import CoordinatorCommands
from fedcybgd.coordinator.commands.output import Facts, Json, Yes, be_sure, moment, say_deleted, say_json
from fedcybgd.shared.contract.operators import TokenAnswer, TokenView
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.contract.views import AgentView, ExposureView
from fedcybgd.shared.host.terminal import Terminal

app = CoordinatorCommands(no_args_is_help=True, help="Enrol, list, rename, revoke, release and delete agents.")
LAST = 1000
"""Lines of the ledger that are shown"""
terminal = Terminal()


@app.command()
def token(
    expires_in: Annotated[float, typer.Option(help="Seconds until the token expires unused.")] = 3600,
    uses: Annotated[int, typer.Option(help="How many agents may enrol with it.", min=1)] = 1,
    as_json: Json = False,
) -> None:
    """Make a token with which one agent can enrol, or so many."""
    client = Client()
    made = client.agents.token(expires_in_s=expires_in, uses=uses)
    if as_json:
        say_json(TokenAnswer, made)
        return
    terminal.say(made.token)
    believe = f" --coordinator-key {made.coordinator_key}" if made.coordinator_key else ""
    Terminal(stderr=True).say(
        f"\nOn the agent's machine, before {moment(made.expires_at)} UTC (it asks for the token):\n"
        f"  fedagent enroll {client.url} --name NAME --data FILE --runs RUN{believe}"
    )


@app.command()
def tokens(as_json: Json = False) -> None:
    """All tokens, those that are spent too; never their secrets."""
    found = list(Client().agents.tokens())
    if as_json:
        say_json(list[TokenView], found)
        return
    table = Table("token", "made", "expires", "used", "withdrawn", "for")
    for one in found:
        for_whom = f"another key of {one.agent}" if one.agent else "new agents"
        row = (one.id, moment(one.created_at), moment(one.expires_at), f"{one.used} of {one.uses}", moment(one.withdrawn_at), for_whom)
        table.add_row(*row)
    terminal.table(table)


@app.command()
def withdraw(token_id: Annotated[str, typer.Argument(help="As `fedcoord agents tokens` shows it.")], as_json: Json = False) -> None:
    """Let nobody enrol with a token any more."""
    Client().agents.withdraw(token_id)
    if as_json:
        say_json(Facts, {"id": token_id, "withdrawn": True})
    else:
        terminal.say(f"token {token_id} is withdrawn")


@app.command()
def rotate(
    name: Agent,
    expires_in: Annotated[float, typer.Option(help="Seconds until the token expires unused.")] = 3600,
    as_json: Json = False,
) -> None:
    """Take an agent's key away at once, and make a token with which its owner gets another one."""
    made = Client().agents.reissue(name, expires_in_s=expires_in)
    if as_json:
        say_json(TokenAnswer, made)
        return
    terminal.say(made.token)
    Terminal(stderr=True).say(
        f"\n{name} has no key now. On its machine, before {moment(made.expires_at)} UTC:\n"
        "  fedagent rotate-key --token-file FILE      # --token-file - reads it from standard input"
    )


@app.command(name="list")
def list_agents(as_json: Json = False) -> None:
    """All agents."""
    agents = list(Client().agents.list())
    if as_json:
        say_json(list[AgentView], agents)
        return
    table = Table("name", "state", "last seen", "key expires", "device", "last error")
    for agent in agents:
        device = f"{agent.device.kind}, {agent.device.cores} cores"
        state = f"quarantined until {moment(agent.quarantined_until)}" if agent.quarantined_until else agent.state
        expires = moment(agent.key_expires_at) or "never"
        table.add_row(agent.name, state, moment(agent.last_seen_at) or "never", expires, device, one_line(agent.last_error or ""))
    terminal.table(table)


@app.command()
def revoke(name: Agent, as_json: Json = False) -> None:
    """Shut an agent out at once; what it holds is given to others."""
    _say_state(Client().agents.revoke(name), as_json)


@app.command()
def release(name: Agent, as_json: Json = False) -> None:
    """End the quarantine of an agent: it is asked for work again at once."""
    _say_state(Client().agents.release(name), as_json)


@app.command()
def rename(name: Agent, to: Annotated[str, typer.Argument(help="What it is called from now on.")], as_json: Json = False) -> None:
    """Give an agent another name; its key and its work stay its own. Refused as long as a run file names it."""
    agent = Client().agents.rename(name, to)
    if as_json:
        say_json(AgentView, agent)
    else:
        terminal.say(f"agent {name} is {agent.name} now")


@app.command()
def delete(name: Agent, yes: Yes = False, as_json: Json = False) -> None:
    """Delete an agent that was revoked and has worked in no run that is still there; its name is free again."""
    client = Client()
    agent = client.agents.get(name)
    be_sure(f"All that is known of agent {agent.name} ({agent.id}), which is {agent.state}, will be gone.", yes)
    client.agents.delete(agent.id)
    say_deleted("agent", agent.name, agent.id, as_json)


def _say_state(agent: AgentView, as_json: bool) -> None:
    if as_json:
        say_json(AgentView, agent)
    else:
        terminal.say(f"agent {agent.name} is {agent.state}")


@app.command()
def exposure(
    agent: Annotated[str | None, typer.Argument(help="Name; all if left out.", autocompletion=AGENTS)] = None, as_json: Json = False
) -> None:
    """Which agent has received which block, at which version and codec; the last thousand, the newest first."""
    table = Table("agent", "run", "block", "version", "codec", "first at")
    found = list(islice(Client().exposure(agent), LAST))
    if as_json:
        say_json(list[ExposureView], found)
        return
    for entry in found:
        table.add_row(entry.agent, entry.run_id, entry.block, str(entry.version), entry.codec, moment(entry.first_at))
    terminal.table(table)
