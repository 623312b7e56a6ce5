"""YAML as it is written: in which line a value stands, and what stands there twice."""

from collections.abc import Iterator
from typing import Any

import yaml

DEEPEST = 50
MOST_PROBLEMS = 1000
"""Told of one file; to find the line of each takes as long as the file has fields"""
MOST_NODES = 1 << 20
"""Of a tree in which every alias is written out: ten labels for each that a run may have"""


class _Loader(yaml.SafeLoader):
    """Gives up where brackets stand deeper in each other than in any run file: for each more the scanner takes longer, up to minutes."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level >= DEEPEST:
            raise RecursionError(f"more than {DEEPEST} brackets in each other")
        super().fetch_flow_collection_start(token)


def composed(text: str) -> Any:
    """The tree, with the places of its nodes. Raises `ValueError` where aliases make it endless, or too large to be walked through."""
    tree = yaml.compose(text, Loader=_Loader)
    if _nodes(tree, {}) > MOST_NODES:
        raise ValueError(f"with its aliases written out it has more than {MOST_NODES:,} of them")
    return tree


def _nodes(node: Any, known: dict[int, int | None]) -> int:
    """How many nodes a tree has when every alias in it is written out; each is looked at once. `known`: None where one is not finished."""
    if id(node) not in known:
        known[id(node)] = None
        pairs = node.value if isinstance(node, yaml.CollectionNode) else ()
        inner = (part for pair in pairs for part in (pair if isinstance(pair, tuple) else (pair,)))
        known[id(node)] = 1 + sum(_nodes(part, known) for part in inner)
    found = known[id(node)]
    if found is None:
        raise ValueError(f"the alias in line {node.start_mark.line + 1} stands inside of what it means")
    return found


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
