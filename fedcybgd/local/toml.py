"""Writes settings as TOML: what `tomllib` reads back as it was."""

import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Value: TypeAlias = "str | float | bool | Sequence[str] | Mapping[str, Value]"
Table = Mapping[str, Value]


def dumps(values: Table, place: tuple[str, ...] = ()) -> str:
    """A table and those in it; what has no table of its own comes first."""
    own = [f"{_text(name)} = {_value(value)}" for name, value in values.items() if not isinstance(value, Mapping)]
    heading = [f"[{'.'.join(map(_text, place))}]"] if place and (own or not values) else []
    below = [dumps(value, (*place, name)) for name, value in values.items() if isinstance(value, Mapping)]
    return "\n".join([*heading, *own, "", *below]) if own or heading else "\n".join(below)


def _value(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Sequence):
        return "[" + ", ".join(_text(entry) for entry in value) + "]"
    return repr(value)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
