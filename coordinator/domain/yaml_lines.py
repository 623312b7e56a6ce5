"""YAML as it is written: in which line a value stands, and what stands there twice."""

from collections.abc import Iterator
from typing import Any

import yaml

DEEPEST = 50


class _Loader(yaml.SafeLoader):
    """Gives up where brackets stand deeper in each other than in any run file: for each more the scanner takes longer, up to minutes."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level >= DEEPEST:
            raise RecursionError(f"more than {DEEPEST} brackets in each other")
        super().fetch_flow_collection_start(token)


def composed(text: str) -> Any:
    """The tree, with the places of its nodes."""
    return yaml.compose(text, Loader=_Loader)


def repeated(node: Any, path: str) -> Iterator[tuple[int, str, str]]:
    """Fields that are written twice in one section: YAML would take the last one and say nothing."""
    seen: set[str] = set()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        field = f"{path}{key.value}"
        if field in seen:
            yield key.start_mark.line + 1, field, "this field is there twice"
        seen.add(field)
        yield from repeated(value, f"{field}.")


def line_of(node: Any, loc: tuple[int | str, ...]) -> int:
    line = node.start_mark.line + 1 if node is not None else 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == part), None)
            if pair is None:
                continue
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return int(line)
