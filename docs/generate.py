"""Writes what is taken from the code: docs/states.md, tests/wire/openapi.json, and the tables between `<!-- table: … -->` and `<!-- end -->`.

`make docs` writes; `tests/test_docs.py` fails where a page is not what this would write.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args, get_origin

from fastapi.routing import APIRoute
from pydantic import BaseModel

from docs import statechart, wire
from fedcybgd.agent import metrics as agent_metrics
from fedcybgd.agent.policy import Policy
from fedcybgd.agent.settings import Config
from fedcybgd.agent.site import metrics as cache_metrics
from fedcybgd.coordinator.api import (
    agents,
    assignments,
    audit,
    event_stream,
    held_out,
    insight,
    model_uploads,
    models,
    operators,
    plan,
    runs,
    status,
)
from fedcybgd.coordinator.api.route import guard_of
from fedcybgd.coordinator.db import migrate
from fedcybgd.coordinator.domain.metrics import METRICS
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.settings import Settings
from fedcybgd.shared.contract.metrics import Metric
from fedcybgd.shared.contract.provenance import ProvenanceFormat
from fedcybgd.shared.contract.versions import SPOKEN
from fedcybgd.shared.contract.words import API
from fedcybgd.shared.host.exits import MEANINGS

DOCS = Path(__file__).parent
ROUTERS = (status, operators, audit, agents, models, model_uploads, held_out, plan, runs, insight, event_stream, assignments)
MARKED = re.compile(r"(<!-- table: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> dict[Path, str]:
    """What every generated file must say."""
    result = {DOCS / "states.md": statechart.document(), wire.SNAPSHOT: wire.snapshot()}
    for path in sorted(DOCS.rglob("*.md")):
        if path not in result:
            result[path] = MARKED.sub(lambda m: f"{m[1]}\n{TABLES[m['name']]()}\n{m[3]}", path.read_text())
    return result


def rows(heading: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    heading = list(heading)
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in (heading, ["---"] * len(heading), *lines)
    )


# ---- fields of pydantic models --------------------------------------------------------------------------------------


def fields_of(model: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    """Dotted name, type, default and meaning of every field; sections are entered."""
    schema = model.model_json_schema()
    yield from _fields(schema, schema.get("$defs", {}), model, "")


def _fields(schema: dict[str, Any], defs: dict[str, Any], model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, entry in schema["properties"].items():
        section = _section(model, name)
        if section is not None:
            several = get_origin(model.model_fields[name].annotation) is dict
            yield from _fields(defs[section.__name__], defs, section, f"{prefix}{name}." + ("NAME." if several else ""))
        else:
            yield prefix + name, _type(entry), _default(model, name), entry.get("description", "")


def _section(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    annotation: Any = model.model_fields[name].annotation
    return next((t for t in (annotation, *getattr(annotation, "__args__", ())) if isinstance(t, type) and issubclass(t, BaseModel)), None)


def _type(entry: dict[str, Any]) -> str:
    if "anyOf" in entry:
        return " or ".join(_type(option) for option in entry["anyOf"])
    if "const" in entry or "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry.get("enum", [entry.get("const")]))
    if entry["type"] == "array":
        return f"list of {_type(entry['items'])}"
    if entry["type"] == "object":
        return "mapping"
    name = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true`, `false`", "null": "`null`"}[entry["type"]]
    name = "path" if entry.get("format") == "path" else name
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [
        f"{sign} {entry[key]:g}" if isinstance(entry[key], float) else f"{sign} {entry[key]}" for key, sign in signs.items() if key in entry
    ]
    return " ".join([name, ", ".join(limits)]).strip()


def _default(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Path):
        return "the user's data directory"  # it differs from machine to machine
    if value is None:
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`".replace("'", '"')


def run_file_table() -> str:
    return rows(("field", "type", "default", "meaning"), ((f"`{n}`", *rest) for n, *rest in fields_of(RunFile)))


def agent_table() -> str:
    return rows(("setting", "type", "default", "meaning"), ((f"`{n}`", *rest) for n, *rest in fields_of(Config)))


def policy_table() -> str:
    return rows(("rule", "type", "default", "meaning"), ((f"`{n}`", *rest) for n, *rest in fields_of(Policy)))


def settings_table() -> str:
    return rows(("variable", "type", "default", "meaning"), ((f"`FEDCOORD_{n.upper()}`", *rest) for n, *rest in fields_of(Settings)))


# ---- routes ---------------------------------------------------------------------------------------------------------


def routes() -> list[tuple[str, str, APIRoute]]:
    """Method, path and route of everything under /v1."""
    found = [route for module in ROUTERS for route in module.router.routes if isinstance(route, APIRoute)]
    return [(method, API + route.path, route) for route in found for method in sorted(route.methods)]


def routes_table() -> str:
    return rows(
        ("route", "what it does", "key", "good answers", "errors"),
        (
            (
                f"`{method} {path}`", route.summary or "", guard_of(route).word,
                ", ".join(str(s) for s in sorted({route.status_code or 200, *_statuses(route, 0, 400)})),
                ", ".join(str(s) for s in _statuses(route, 400, 600)),
            )
            for method, path, route in routes()
        ),
    )  # fmt: skip


def _statuses(route: APIRoute, low: int, high: int) -> list[int]:
    return sorted(int(s) for s in route.responses if low <= int(s) < high)


def exit_codes_table() -> str:
    return rows(("status", "meaning"), ((str(int(code)), meaning) for code, meaning in MEANINGS.items()))


def metrics_table(metrics: Iterable[Metric]) -> str:
    lines = ((f"`{m.name}`", m.kind, ", ".join(f"`{label}`" for label in m.labels) or "–", m.meaning) for m in metrics)
    return rows(("metric", "kind", "labels", "meaning"), lines)


def versions_table() -> str:
    numbers = (
        ("the program", version("fedcybgd")),
        ("[the protocol](protocol.md#versions)", str(SPOKEN)),
        ("the schema of the database", str(migrate.newest())),
        ("the kinds of provenance files that are read", ", ".join(get_args(ProvenanceFormat))),
    )
    return rows(("of", "version"), numbers)


TABLES: dict[str, Callable[[], str]] = {
    "run-file": run_file_table,
    "agent": agent_table,
    "policy": policy_table,
    "settings": settings_table,
    "routes": routes_table,
    "exit-codes": exit_codes_table,
    "metrics": lambda: metrics_table(METRICS),
    "versions": versions_table,
    "agent-metrics": lambda: metrics_table(agent_metrics.METRICS),
    "cache-metrics": lambda: metrics_table(cache_metrics.METRICS),
}


if __name__ == "__main__":
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(DOCS.parent)}")
