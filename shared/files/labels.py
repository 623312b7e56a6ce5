"""What the values of a label column mean: the same for the text of CSV and for the numbers of JSON and Parquet."""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from fedcybgd.shared.contract.errors import DataError

NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{0,18})?([eE][+-]?[0-9]{1,2})?")
"""What counts as a number; Python itself would read 1_0 as ten, and digits of other scripts."""

LEADING = re.compile(r"\s*([0-9]{1,9})(?![0-9.,])")
"""The number that a name such as "3 stars" begins with."""


class Labels:
    """Turns values into indices in [0, `count`).

    A value that is one of `names` is its index; where a name is a number, all numbers are names, and 1, 1.0 and "1" the same one.
    Else a value must be a whole number, and the smallest is `first`. Where the file itself names its numbers (`told`, in order), and any
    of these names is the run's, a number means its name.
    """

    def __init__(self, count: int | None, names: Sequence[str] | None = None, first: int = 0, told: Sequence[str] | None = None) -> None:
        self._count = count
        self._first = first
        self._exact = {name: index for index, name in enumerate(names or ())}
        self._plain = _unique((bare(name), index) for name, index in self._exact.items())
        self._truth = _unique((bare(name).casefold(), i) for name, i in self._exact.items() if bare(name).casefold() in ("true", "false"))
        leading = [(int(found[1]), i) for name, i in self._exact.items() if (found := LEADING.match(name))]
        self._leading = _unique(leading) if len(leading) == len(self._exact) else {}
        self._numbers = _unique((number, index) for name, index in self._exact.items() if (number := _number(name)) is not None)
        known = _unique((bare(name).casefold(), index) for name, index in self._exact.items())
        named = [(name, self._exact.get(name, known.get(bare(name).casefold()))) for name in told or ()]
        self._told: list[tuple[str, int | None]] = named if any(index is not None for _, index in named) else []

    def index(self, value: object, where: str, **detail: Any) -> int:
        """Raises `DataError`, which names `where`, for a value that is no label."""
        if self._told and isinstance(value, int) and not isinstance(value, bool):
            return self._by_its_name(value, where, **detail)
        text = as_text(value)
        if text is None:
            raise DataError(f"{where}: the label must be a whole number{self._or_name()}, not {shown(value)}", **detail)
        for known, key in ((self._exact, text), (self._plain, bare(text)), (self._truth, bare(text).casefold())):
            if (found := known.get(key)) is not None:
                return found
        number = _number(text)
        if number is not None and self._numbers:
            if (found := self._numbers.get(number)) is not None:
                return found
            raise DataError(
                f"{where}: label {shown(value)} is none of the run's labels {self._some()}, which are numbers themselves and so never positions",
                **detail,
            )
        if number is None or isinstance(value, bool) or number != number.to_integral_value():
            raise DataError(f"{where}: the label must be a whole number{self._or_name()}, not {shown(value)}", **detail)
        label = int(number)
        if self._count is not None and not self._first <= label < self._first + self._count:
            hint = "; where labels count from 1, set `first_label = 1`" if label == self._count and not self._first else ""
            raise DataError(
                f"{where}: label {label} is outside {self._first}…{self._first + self._count - 1}, "
                f"the range of the run's {self._count} labels{hint}",
                **detail,
            )
        meant = self._leading.get(label)
        if meant is not None and meant != label - self._first:
            names = list(self._exact)
            raise DataError(
                f"{where}: label {label} may be {names[meant]!r:.40} or, counted from {self._first}, {names[label - self._first]!r:.40}; "
                "write the name, or set `first_label`",
                **detail,
            )
        return label - self._first

    def _by_its_name(self, number: int, where: str, **detail: Any) -> int:
        name, found = self._told[number] if 0 <= number < len(self._told) else (None, None)
        if found is None:
            what = "has no name" if name is None else f"is {name!r:.60}"
            raise DataError(
                f"{where}: label {number} {what} in the file itself, which is none of the run's labels {self._some()}", **detail
            )
        return found

    def _or_name(self) -> str:
        return f" or one of the run's label names ({self._some()})" if self._exact else ""

    def _some(self) -> str:
        names = list(self._exact)
        return ", ".join(f"{name!r:.40}" for name in names[:6]) + (" …" if len(names) > 6 else "")


def check_names(names: Sequence[str]) -> None:
    """Raise `ValueError` for names of labels that could not be told apart in the rows of every agent, or that nobody could read."""
    seen: set[str] = set()
    for name in names:
        if not name.strip() or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
            raise ValueError(f"{name!r:.60} is no name of a label: it is empty, or has line breaks, control characters or half characters")
        if bare(name) in seen:
            raise ValueError(f"{bare(name)!r:.60} is there twice, but for spaces around it or for the form of its characters")
        seen.add(bare(name))


def _unique(pairs: Any) -> dict[Any, int | None]:
    """Key → index; None for a key that several names share, which then says nothing."""
    result: dict[Any, int | None] = {}
    for key, index in pairs:
        result[key] = None if key in result else index
    return result


def as_text(value: object) -> str | None:
    """How a CSV file would write the value; None for what it could not."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e18:
        return str(int(value))
    if isinstance(value, (str, int, float, Decimal)):
        return str(value) if not isinstance(value, int) or abs(value) < 10**18 else None
    return None


def bare(text: str) -> str:
    """A name as it is compared: without spaces around it, and in one of the forms that Unicode has for the same characters."""
    return unicodedata.normalize("NFC", text.strip())


def _number(text: str) -> Decimal | None:
    text = text.strip()
    return Decimal(text) if NUMBER.fullmatch(text) else None


def shown(value: object) -> str:
    """The beginning of a value, as a message may quote it."""
    if isinstance(value, (str, bytes)):
        value = value[:61]
    try:
        return f"{value!r:.60}"
    except (RecursionError, ValueError):  # a list in a list in a list …, a number of ten thousand digits
        return f"a {type(value).__name__}"
