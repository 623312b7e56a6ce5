"""Environment variables that look like settings of a program and are none."""

import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches

from fedcybgd.shared.contract.plain import one_line

OF_KUBERNETES = re.compile(r"SERVICE_(HOST|PORT)|PORT_\d")
"""What every container there is told of a Service that is called as a program is"""


def without_effect(variables: Iterable[str], prefix: str, known: Collection[str], of_others: Collection[str] = ()) -> list[str]:
    """A line for each variable with this prefix that nothing reads, with the one of `known` that was meant, if that is clear."""
    lines = []
    for variable in sorted(variables):
        name = variable.upper().removeprefix(prefix)
        if not variable.upper().startswith(prefix) or name in (*known, *of_others) or OF_KUBERNETES.match(name):
            continue
        meant = [one for one in known if name and one.startswith(name)] or get_close_matches(name, known, 1, 0.65)
        lines.append(f"{one_line(variable)[:80]} is no setting, and has no effect{f'; {prefix}{meant[0]} is one' if meant else ''}")
    return lines
