"""What the shell completes of a coordinator: names of runs, models and agents, where one answers at once."""

import re
from collections.abc import Callable
from typing import Annotated, Any

import typer

from fedcybgd.client.connection import Connection
from fedcybgd.shared.contract.errors import FedError

WAITS_S = 1.0
MOST = 200
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a shell takes as it is"""


def named(path: str) -> Callable[[str], list[str]]:
    """Of one page of a list, the names that begin as what is there; nothing where nobody answers, for a shell can say no error."""

    def complete(incomplete: str) -> list[str]:
        try:
            connection = Connection(timeout_s=WAITS_S, patience_s=0)
            found: Any = connection.get(path, limit=MOST)
            names = [entry["name"] for entry in found]
        except (FedError, KeyError, TypeError):
            return []
        return list(dict.fromkeys(n for n in names if isinstance(n, str) and n.startswith(incomplete) and SAFE.fullmatch(n)))

    return complete


RUNS, MODELS, AGENTS = named("/runs"), named("/models"), named("/agents")
Run = Annotated[str, typer.Argument(help="Name or id of the run.", autocompletion=RUNS)]
Model = Annotated[str, typer.Argument(help="Name of the model.", autocompletion=MODELS)]
Agent = Annotated[str, typer.Argument(help="Name of the agent.", autocompletion=AGENTS)]
