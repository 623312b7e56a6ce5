"""`fedcoord audit …`."""

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from fedcybgd.client.client import Client
from fedcybgd.coordinator.commands.given import CoordinatorCommands
from fedcybgd.coordinator.commands.new_file import Force, new_file
from fedcybgd.coordinator.commands.output import Facts, Json, moment, say_json
from fedcybgd.shared.contract.operators import AuditBroken, AuditEntry, check_audit
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.host.terminal import Terminal

app = CoordinatorCommands(no_args_is_help=True, help="Who did what.")
terminal = Terminal()


@app.command(name="list")
def list_acts(last: Annotated[int, typer.Option(help="How many, of the newest.", min=1)] = 50, as_json: Json = False) -> None:
    """The newest acts, the newest last."""
    found = deque(Client().audit(), maxlen=last)
    if as_json:
        say_json(list[AuditEntry], list(found))
        return
    table = Table("no.", "at", "who", "role", "from", "act", "what", "outcome")
    for one in found:
        who = one.name or one.caller
        table.add_row(
            str(one.seq), moment(one.at), who, one.role, one.address, one_line(one.act), one_line(one.subject), one_line(one.outcome)
        )
    terminal.table(table)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Where to; one JSON object a line, the oldest first.", dir_okay=False)],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write the whole log to a file, and say what its last hash is."""
    with new_file(file, force) as out:

        def written() -> Iterator[AuditEntry]:
            for entry in Client().audit():
                out.write(entry.model_dump_json() + "\n")
                yield entry

        number, last = check_audit(written())
    if as_json:
        say_json(Facts, {"entries": number, "last_hash": last, "file": str(file)})
    else:
        terminal.say(f"{number} entries in {file}, the last with hash {last}")


@app.command()
def verify(
    file: Annotated[
        Path | None, typer.Argument(help="An exported log; default: the coordinator's own.", exists=True, dir_okay=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Recompute the chain, and say whether every entry is as it was written. Compare the last hash with one that was kept elsewhere."""
    number, last = check_audit(Client().audit() if file is None else _read(file))
    if as_json:
        say_json(Facts, {"entries": number, "last_hash": last})
    else:
        terminal.say(f"{number} entries, each as it was written, the last with hash {last}")


def _read(file: Path) -> Iterator[AuditEntry]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield AuditEntry.model_validate_json(line)
            except ValidationError as error:
                raise AuditBroken(f"{file}, line {number}, is no entry of an audit log") from error
