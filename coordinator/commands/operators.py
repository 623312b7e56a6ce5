"""`fedcoord operators …`."""

from typing import Annotated

import typer
from rich.table import Table

from fedcybgd.client.client import Client
from fedcybgd.coordinator.commands.given import CoordinatorCommands
from fedcybgd.coordinator.commands.output import Json, moment, say_json
from fedcybgd.coordinator.domain.role import Role
from fedcybgd.shared.contract.operators import OperatorKeyAnswer, OperatorView
from fedcybgd.shared.host.terminal import Terminal

app = CoordinatorCommands(no_args_is_help=True, help="Who steers the coordinator: names, roles and keys.")
terminal = Terminal()
DAY_S = 86_400
Expires = Annotated[
    float | None, typer.Option(help="Days until the key ends; default: FEDCOORD_OPERATOR_KEYS_HOLD_S, or never.", min=0.001)
]


@app.command()
def add(
    name: str,
    role: Annotated[Role, typer.Option(help="viewer sees; operator acts; owner also makes operators, keys and tokens.")],
    expires: Expires = None,
    as_json: Json = False,
) -> None:
    """Add an operator. The key is on standard output, this once."""
    _say_key(Client().operators.add(name, role.value, expires_in_s=_seconds(expires)), as_json)


@app.command(name="list")
def list_operators(as_json: Json = False) -> None:
    """All operators, those that were revoked too."""
    operators = list(Client().operators.list())
    if as_json:
        say_json(list[OperatorView], operators)
        return
    table = Table("name", "role", "since", "key expires", "last used", "revoked")
    for one in operators:
        since = moment(one.rotated_at or one.created_at)
        table.add_row(
            one.name, one.role, since, moment(one.expires_at) or "never", moment(one.last_used_at) or "never", moment(one.revoked_at)
        )
    terminal.table(table)


@app.command()
def rotate(
    name: Annotated[str, typer.Argument(help="Whose; default: your own.")] = "me", expires: Expires = None, as_json: Json = False
) -> None:
    """Make a new key; the old one is void at once, also in browsers. The key is on standard output, this once."""
    _say_key(Client().operators.rotate(name, expires_in_s=_seconds(expires)), as_json)


@app.command()
def revoke(name: str, as_json: Json = False) -> None:
    """Shut an operator out at once, browsers included."""
    gone = Client().operators.revoke(name)
    if as_json:
        say_json(OperatorView, gone)
    else:
        terminal.say(f"operator {gone.name} is revoked")


def _say_key(made: OperatorKeyAnswer, as_json: bool) -> None:
    if as_json:
        say_json(OperatorKeyAnswer, made)
        return
    terminal.say(made.key)
    until = f" until {moment(made.expires_at)} UTC" if made.expires_at else ""
    Terminal(stderr=True).say(
        f"\nthe key of {made.name}, {made.role}{until}; it cannot be shown again. Its holder sets FEDCOORD_OPERATOR_KEY to it"
    )


def _seconds(days: float | None) -> float | None:
    return None if days is None else days * DAY_S
