"""A state machine is a table of (state, event) → state, and one function that reads it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from fedcybgd.coordinator.errors import Conflict

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


class InvalidTransition(Conflict):
    code = "invalid_transition"


@dataclass(frozen=True)
class Machine(Generic[S, E]):
    noun: str
    states: type[S]
    events: type[E]
    start: S
    table: Mapping[tuple[S, E], S]
    asked: frozenset[E] = frozenset()
    """what people ask for, where the rest happens by itself; none named: all"""

    def after(self, state: S | str, event: E) -> S:
        """The state that `event` leads to; raises `InvalidTransition` (409) where the table has no entry."""
        state = self.states(state)
        try:
            return self.table[state, event]
        except KeyError:
            possible = sorted({str(e) for s, e in self.table if s == state and e in (self.asked or self.events)})
            raise InvalidTransition(
                f"{'an' if self.noun[0] in 'aeiou' else 'a'} {self.noun} that is {state} cannot {event}"
                + (f"; it can {', '.join(possible)}" if possible else "; that state is final"),
                state=str(state),
                event=str(event),
            ) from None

    def is_final(self, state: S | str) -> bool:
        return all(s != state for s, _ in self.table)
