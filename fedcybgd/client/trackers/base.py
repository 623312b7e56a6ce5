"""What a tracker is: a program of others that keeps the curves of many experiments, as far as we use it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import Any, NamedTuple, Protocol

from fedcybgd.client.errors import ClientError, PackageMissing, TrackerFailed

NOT_IN_NAMES = re.compile(r"[^\w./ -]")
LONGEST = 200


class Key(NamedTuple):
    """By which a point is known again; one that is measured again after a rollback is another."""

    name: str
    step: int
    ms: int
    """when, in milliseconds of Unix time"""


@dataclass(frozen=True)
class Point:
    """A number of a run."""

    name: str
    step: int
    """after so many rounds"""
    value: float
    at: datetime

    @property
    def key(self) -> Key:
        return Key(self.name, self.step, round(self.at.timestamp() * 1000))


@dataclass(frozen=True)
class Tracked:
    """The run as trackers know it."""

    id: str
    name: str
    parameters: Mapping[str, str]
    """the run file: dotted name of a field → its value"""


class Tracker(Protocol):
    def open(self, run: Tracked) -> set[Key]:
        """Begin with a run, or go on with it; the points that are there. Raises `PackageMissing`, `TrackerFailed`, `FileUnusable`."""
        ...

    def write(self, points: Sequence[Point], tags: Mapping[str, str]) -> None:
        """Add points that are not there yet, and set words beside the run. Raises `TrackerFailed`, `FileUnusable`."""
        ...

    def close(self, state: str) -> None:
        """What was written is kept; `state` is that of the run."""
        ...


def package(module: str, extra: str) -> Any:
    """A module of an extra. Raises `PackageMissing`, which names it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        text = f"the package {error.name} is not installed: pip install '.[{extra}]' in a checkout of this project"
        raise PackageMissing(text, extra=extra) from error


@contextmanager
def told(what: str) -> Iterator[None]:
    """Whatever goes wrong in a program of others is one line. Raises `TrackerFailed`."""
    try:
        yield
    except ClientError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:500]
        raise TrackerFailed(f"{what} does not take the run: {line or type(error).__name__}") from error


def plain_name(text: str) -> str:
    """As all trackers take names."""
    return NOT_IN_NAMES.sub("_", text)[:LONGEST]
