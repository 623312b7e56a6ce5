"""Settings of the coordinator on this machine, as options and the environment give them."""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from fedcybgd.coordinator.settings import Settings
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.words import problem_in_words

Home = Annotated[Path | None, typer.Option(help="Directory of database and blobs (FEDCOORD_HOME).")]


class SettingsInvalid(FedError):
    code = "settings_invalid"


def settings_of(**given: Any) -> Settings:
    """Options go before variables. Raises `SettingsInvalid`, which names each wrong variable."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        lines = [f"FEDCOORD_{'_'.join(str(p) for p in e['loc']).upper()}: {problem_in_words(e)}" for e in error.errors()]
        raise SettingsInvalid("settings are wrong:\n" + "\n".join(lines)) from error
