"""First on the path of a process, it takes from it what people see it by: events, counters of metrics and lines of the log about events.

`benchmarks.overhead` measures by it what these cost. The bodies of the functions are taken out, so that whoever has imported them has them so.
"""

import sys
from types import FunctionType


def _without(*functions: FunctionType) -> None:
    def nothing(*_: object, **__: object) -> None:
        return None

    for function in functions:
        assert not function.__code__.co_freevars
        function.__code__, function.__defaults__, function.__kwdefaults__ = nothing.__code__, None, None


if any(word.startswith("fedcybgd.") for word in sys.orig_argv):
    from fedcybgd.shared.host.counters import Counters

    _without(Counters.add)
if any(word.startswith("fedcybgd.coordinator") for word in sys.orig_argv):
    from fedcybgd.coordinator.db import counts, lines
    from fedcybgd.coordinator.services.records import events

    _without(counts.count, counts.count_of, lines.write, events.record, events.record_at_most)
