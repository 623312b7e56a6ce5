"""What goes between services has types: JSON is parsed at the doors, and time is an argument."""

import ast

from sqlalchemy import JSON

from fedcybgd.coordinator.db.base import Base
from fedcybgd.coordinator.db.models import Assignment
from fedcybgd.coordinator.db.typed import Typed
from tests.test_architecture import MODULES, called_attributes, calls, inside

SERVICES = [m for m in MODULES if inside(m.name, "coordinator.services")]
RULES = [m for m in MODULES if inside(m.name, "coordinator.domain")]
UNTYPED = {
    "coordinator.services.read.lists": "rows of a few columns, of which a view is made at once",
    "coordinator.services.read.timeline": "the same",
    "coordinator.services.read.block_map": "the same",
    "coordinator.services.agents.readiness": "the same",
}
"""Modules of services that name `Any`, and why."""


def test_json_is_parsed_at_the_doors() -> None:
    """Of HTTP, of the database, of a file: between them there are models."""
    # Made of a row's attributes, a view parses nothing.
    parsed = {m.name for m in (*SERVICES, *RULES) for call in calls(m)
              if isinstance(call.func, ast.Attribute) and call.func.attr.startswith("model_validate")
              and not any(keyword.arg == "from_attributes" for keyword in call.keywords)}  # fmt: skip
    assert parsed == {"coordinator.domain.run_file"}, "the run file of an operator is such a door"
    dumps = {found for room in ("services", "domain") for found in called_attributes(f"coordinator.{room}") if "model_dump" in found[1]}
    assert dumps == {("coordinator.domain.run_file", "model_dump")}, "which is written there, too"


def test_services_pass_values_with_types() -> None:
    assert {m.name for m in SERVICES for _, _, name in m.imports() if name == "Any"} == set(UNTYPED)


def test_every_json_column_has_a_type() -> None:
    assert isinstance(Assignment.__table__.c.train.type, Typed)
    columns = [column for table in Base.metadata.tables.values() for column in table.columns]
    assert [str(c) for c in columns if isinstance(c.type, JSON) and not isinstance(c.type, Typed)] == []


def test_time_is_an_argument_of_services() -> None:
    assert {m.name for m in SERVICES for _, source, name in m.imports() if name == "utcnow" or source == "time"} == set()
    clocks = {"now", "utcnow", "today", "time", "monotonic", "perf_counter"}
    assert {found for found in called_attributes("coordinator.services") if found[1] in clocks} == set()
