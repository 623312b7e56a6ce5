"""The time-outs that can be set: few, and all of them in one table."""

import re
from collections.abc import Iterator

from pydantic import BaseModel

from fedcybgd.agent.policy import Policy
from fedcybgd.agent.settings import Config
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.settings import Settings
from tests.test_architecture import ROOT

TABLES = (ROOT / "docs" / "operating.md").read_text().split("### All time-outs")[1].split("### ")[0]
FILES = {"run file: ": RunFile, "agent.toml: ": Config, "policy.toml: ": Policy}


def times(kind: type[BaseModel], place: str = "") -> Iterator[str]:
    """Names of the fields that are a number of seconds, in all sections."""
    for name, field in kind.model_fields.items():
        if name.endswith("_s") or name == "seconds":
            yield place + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from times(field.annotation, f"{place}{name}.")


def test_every_time_that_can_be_set_is_in_the_tables_and_the_time_outs_are_fewer_than_ten() -> None:
    there = {f"FEDCOORD_{name.upper()}" for name in times(Settings)}
    there |= {name for kind in FILES.values() for name in times(kind)}
    time_outs, others = TABLES.split("| other times |")
    told = [
        re.findall(r"`([A-Za-z_.]+)`", line.split("|")[1])
        for line in time_outs.splitlines()
        if line.startswith("|") and "`" in line.split("|")[1]
    ]
    named = {name for names in told for name in names}
    rest = set(re.findall(r"`(FEDCOORD_[A-Z_]+)`", others))
    assert len(there) > 5
    assert there == named | rest
    assert len(named) < 10
