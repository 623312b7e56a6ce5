"""Log lines for programs: one JSON object each, with what it is about as fields."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType

ABOUT = "about"
"""Under this name a line may bring fields of its own: `log.info(…, extra={"about": {"run": …}})`"""
_about: ContextVar[Mapping[str, object]] = ContextVar(ABOUT, default=MappingProxyType({}))
_always: dict[str, object] = {}


@contextmanager
def about(**fields: object) -> Iterator[None]:
    """Within it every line of this thread has these fields; a thread that is to have them too is started with a copy of the context."""
    token = _about.set({**_about.get(), **fields})
    try:
        yield
    finally:
        _about.reset(token)


def always(**fields: object) -> None:
    """Every line of this process has these fields from now on."""
    _always.update(fields)


class JsonFormatter(logging.Formatter):
    """`at`, `level`, `logger`, `message`, then the fields that it is about; whatever text holds, it stays one line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields: Mapping[str, object] = {**_always, **_about.get(), **getattr(record, ABOUT, {})}
        line.update({name: value for name, value in fields.items() if value is not None and name not in line})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
