"""The methods by the names that run files give them."""

from collections.abc import Sequence

from fedcybgd.coordinator.domain.methods.adapters import AdaptersMethod
from fedcybgd.coordinator.domain.methods.block_cycle import BlockCycle
from fedcybgd.coordinator.domain.methods.head_first import HeadFirst
from fedcybgd.coordinator.domain.methods.method import Method
from fedcybgd.coordinator.domain.methods.whole import Whole
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.domain.schedule import cycle_of, rounds_of
from fedcybgd.coordinator.errors import Invalid

METHODS: dict[str, Method] = {"block-cycle": BlockCycle(), "whole": Whole(), "adapters": AdaptersMethod()}


class MethodUnknown(Invalid):
    code = "method_unknown"


def method_of(spec: RunFile) -> Method:
    """Raises `MethodUnknown`."""
    if spec.method not in METHODS:
        raise MethodUnknown(f"method: there is no method {spec.method!r}; there is {', '.join(sorted(METHODS))}")
    method = METHODS[spec.method]
    return method if spec.schedule.head_start == "fresh" else HeadFirst(method)


def rounds_in(spec: RunFile, visited: Sequence[str], cycles: int | None = None) -> int:
    """Of the whole run, or of its first cycles."""
    method = method_of(spec)
    return spec.schedule.rounds_before + rounds_of(
        lambda of: method.rounds_per_cycle(of, visited), spec, spec.schedule.cycles if cycles is None else cycles
    )


def place_of(spec: RunFile, visited: Sequence[str], round: int) -> tuple[int, int]:
    """In which cycle a round is, and its place there; of what comes before the first cycle those of its first round."""
    method = method_of(spec)
    return cycle_of(lambda of: method.rounds_per_cycle(of, visited), spec, max(0, round - spec.schedule.rounds_before))
