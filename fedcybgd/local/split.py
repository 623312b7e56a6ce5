"""Which agent gets which row of one file: evenly, by labels that are unlike, or by a column that says whose a row is."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fedcybgd.local.errors import SplitInvalid

Kind = Literal["iid", "dirichlet", "column"]
KNOWN = "iid, dirichlet:ALPHA (as in dirichlet:0.5; the smaller, the more unlike) or column:NAME (as in column:site)"


@dataclass(frozen=True)
class Split:
    """How rows are dealt out. `alpha` is that of the Dirichlet distribution, `column` the name of one."""

    kind: Kind = "iid"
    alpha: float = 0.0
    column: str = ""

    @classmethod
    def parsed(cls, text: str) -> "Split":
        """Of `iid`, `dirichlet:0.5` or `column:site`. Raises `SplitInvalid`."""
        kind, colon, value = text.partition(":")
        if kind == "iid" and not colon:
            return cls()
        if kind == "column" and value:
            return cls("column", column=value)
        if kind == "dirichlet":
            try:
                alpha = float(value)
            except ValueError:
                alpha = 0.0
            if 0 < alpha <= 1e6:
                return cls("dirichlet", alpha=alpha)
            raise SplitInvalid(f"{text!r:.60}: alpha is a number above 0, as in dirichlet:0.5")
        raise SplitInvalid(f"{text!r:.60} is no split; there are {KNOWN}")


def dealt(split: Split, keys: Sequence[int | str], agents: int, seed: int) -> list[int]:
    """Of each row the number of its agent, from 0; the same seed deals the same. Each agent has a row at least.

    `keys`: of each row its label, or its value in the column; of `iid` anything. Raises `SplitInvalid`.
    """
    if len(keys) < agents:
        raise SplitInvalid(f"{len(keys)} rows are too few for {agents} agents: each needs one at least")
    found = DEALERS[split.kind](split, keys, agents, random.Random(seed))  # noqa: S311 - no secret
    return found if split.kind == "column" else _with_one_each(found, agents)


def values_of(keys: Sequence[int | str]) -> list[int | str]:
    """The values that rows have in a column, those of most rows first."""
    return [value for value, _ in sorted(Counter(keys).items(), key=lambda pair: (-pair[1], str(pair[0])))]


def _evenly(_split: Split, keys: Sequence[int | str], agents: int, draw: random.Random) -> list[int]:
    order = list(range(len(keys)))
    draw.shuffle(order)
    found = [0] * len(keys)
    for place, row in enumerate(order):
        found[row] = place % agents
    return found


def _by_labels(split: Split, keys: Sequence[int | str], agents: int, draw: random.Random) -> list[int]:
    """Of each label the agents get shares drawn from a symmetric Dirichlet distribution (Hsu, Qi and Brown, 2019)."""
    rows: dict[int | str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        rows[key].append(row)
    found = [0] * len(keys)
    for key in sorted(rows, key=str):
        of_label = rows[key]
        draw.shuffle(of_label)
        drawn = [draw.gammavariate(split.alpha, 1.0) for _ in range(agents)]
        if not sum(drawn):  # an alpha so small that all shares are 0: one agent has the label
            drawn[draw.randrange(agents)] = 1.0
        begin, until = 0, 0.0
        for agent, share in enumerate(drawn):
            until += share / sum(drawn)
            end = len(of_label) if agent == agents - 1 else round(until * len(of_label))
            for row in of_label[begin:end]:
                found[row] = agent
            begin = max(begin, end)
    return found


def _by_column(_split: Split, keys: Sequence[int | str], agents: int, _draw: random.Random) -> list[int]:
    """All rows of a value go to one agent: the largest first, each to whoever has the fewest rows."""
    values = values_of(keys)
    if len(values) < agents:
        raise SplitInvalid(f"the column has {len(values)} values, too few for {agents} agents: all rows of a value go to one agent")
    rows, counts = [0] * agents, Counter(keys)
    of_value = {}
    for value in values:
        of_value[value] = min(range(agents), key=lambda agent: rows[agent])
        rows[of_value[value]] += counts[value]
    return [of_value[key] for key in keys]


def _with_one_each(found: list[int], agents: int) -> list[int]:
    """Whoever has nothing gets a row of whoever has most."""
    counts = Counter(found)
    for agent in range(agents):
        if not counts[agent]:
            most = max(range(agents), key=lambda other: counts[other])
            row = found.index(most)
            found[row] = agent
            counts[most], counts[agent] = counts[most] - 1, 1
    return found


DEALERS: dict[Kind, Callable[[Split, Sequence[int | str], int, random.Random], list[int]]] = {
    "iid": _evenly, "dirichlet": _by_labels, "column": _by_column,
}  # fmt: skip
