"""A column of JSON with a type: what goes in and what comes out is validated at the door of the database, and nowhere else.

What is written is the JSON of a pydantic model, or of a list or dict of models. A row that an older version wrote lacks fields that came
since (they take their defaults), and may have some that went (they are ignored). Replace a value, never change it in place:
the session sees only assignments, and values whose model is frozen are shared by all rows that hold the same text.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter
from sqlalchemy import JSON, ColumnElement, Dialect, Text, TypeDecorator, cast, type_coerce

from fedcybgd.shared.contract.words import JsonObject

T = TypeVar("T")
KEPT_CHARACTERS = 4 << 20
"""JSON of which the parsed form is kept, for each column: a run file is asked for at every claim, and hardly ever changes."""


class Typed(TypeDecorator[T]):
    """The column type of `of`: a pydantic model, or what is made of models, strings and numbers."""

    impl = JSON
    cache_ok = True

    def __init__(self, of: type[T]) -> None:
        super().__init__(none_as_null=True)
        self.of = of
        self._adapter: TypeAdapter[T] = TypeAdapter(of)
        frozen = isinstance(of, type) and issubclass(of, BaseModel) and of.model_config.get("frozen", False)
        self._load: Callable[[str], T] = _Parsed(self._parse, KEPT_CHARACTERS) if frozen else self._parse

    def process_bind_param(self, value: T | None, dialect: Dialect) -> Any:  # noqa: ARG002
        if value is None:
            return None
        self._adapter.validate_python(value, strict=True)  # a number is no text
        if self.of == JsonObject:
            return value  # it is JSON, and pydantic would ask of each number in it, in Python, what it is
        return self._adapter.dump_python(value, mode="json", warnings="error")  # and a dict is no model

    def column_expression(self, column: ColumnElement[T]) -> ColumnElement[T]:
        # As text: a driver that parses JSON by itself would do it each time, and in Python.
        return type_coerce(cast(column, Text), self)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[str | None], T | None]:  # noqa: ARG002
        return lambda text: None if text is None or text == "null" else self._load(text)

    def _parse(self, text: str) -> T:
        return self._adapter.validate_json(text, extra="ignore")


class _Parsed(Generic[T]):
    """Remembers what texts were parsed to, those that were asked for last, up to a number of characters."""

    def __init__(self, parse: Callable[[str], T], most: int) -> None:
        self._parse, self._most, self._size = parse, most, 0
        self._known: OrderedDict[str, T] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, text: str) -> T:
        with self._lock:
            if (found := self._known.get(text)) is not None:
                self._known.move_to_end(text)
                return found
        value = self._parse(text)
        with self._lock:
            if text not in self._known:
                self._known[text] = value
                self._size += len(text)
            while self._size > self._most:
                self._size -= len(self._known.popitem(last=False)[0])
        return value
