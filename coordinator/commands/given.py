"""Settings of the coordinator on this machine, as options and the environment give them."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from fedcybgd.coordinator.settings import Settings
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.contract.words import problem_in_words

PREFIX = "FEDCOORD_"
OF_CLIENTS = "URL", "OPERATOR_KEY"
"""What commands on any machine are told by variables of the same prefix"""
OF_KUBERNETES = re.compile(r"SERVICE_(HOST|PORT)|PORT_\d")
"""What every container there is told of a Service called fedcoord"""
LINK = "; Kubernetes sets it where a Service is called fedcoord: call that otherwise, or set enableServiceLinks: false"
Home = Annotated[Path | None, typer.Option(help="Directory of database and blobs (FEDCOORD_HOME).")]


class SettingsInvalid(FedError):
    code = "settings_invalid"


def settings_of(**given: Any) -> Settings:
    """Options go before variables. Raises `SettingsInvalid`, which names each wrong variable."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        lines = [
            f"{PREFIX}{'_'.join(str(p) for p in e['loc']).upper()}: {problem_in_words(e)}{LINK if str(e['input']).startswith('tcp://') else ''}"
            for e in error.errors()
        ]
        raise SettingsInvalid("settings are wrong:\n" + "\n".join(lines)) from error


def without_effect(variables: Iterable[str]) -> list[str]:
    """A line for each variable that looks like a setting and is none, with the one that was meant, if that is clear."""
    known = [name.upper() for name in Settings.model_fields]
    lines = []
    for variable in sorted(variables):
        name = variable.upper().removeprefix(PREFIX)
        if not variable.upper().startswith(PREFIX) or name in (*known, *OF_CLIENTS) or OF_KUBERNETES.match(name):
            continue
        meant = [one for one in known if name and one.startswith(name)] or get_close_matches(name, known, 1, 0.65)
        lines.append(f"{one_line(variable)[:80]} is no setting, and has no effect{f'; {PREFIX}{meant[0]} is one' if meant else ''}")
    return lines
