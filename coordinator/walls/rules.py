"""What a request may be, by its method and path: how large its body, who may ask without a key, and how often."""

import re
from dataclasses import dataclass
from enum import Enum

from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.walls.rates import Rate
from fedcybgd.shared.contract.words import API

JSON_AT_MOST = 1 << 20
"""The longest honest message is a run file or a report on a thousand runs, with some 100 KB."""
FORM_AT_MOST = 16 << 10
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
ENROLMENT_AT_MOST = 64 << 10


class PathRefused(CoordinatorError):
    code = "path_refused"


class Door(Enum):
    KEY = "key"
    """needs a key, which is looked at before the body is read"""
    OPEN = "open"
    """needs none: pages, and what they are made of"""
    TRIED = "tried"
    """needs none, and asks the database whether a secret in the body is right"""


@dataclass(frozen=True)
class Rule:
    door: Door
    most: int | None = JSON_AT_MOST
    """bytes of the body that are read into memory; None: a stream, whose route has a limit of its own"""
    costly: bool = False
    """begins work of seconds"""
    rare: bool = False
    """writes what is never deleted, though no operator asks for it"""
    form: bool = False
    """takes a form, and nothing else"""
    free: bool = False
    """asked by whoever looks whether this coordinator lives, as often as it likes"""


KEYED = Rule(Door.KEY)
STREAM = Rule(Door.KEY, most=None)
COSTLY = Rule(Door.KEY, costly=True)
RARE = Rule(Door.KEY, rare=True)
PAGE = Rule(Door.OPEN, most=FORM_AT_MOST)
HEALTH = Rule(Door.OPEN, most=FORM_AT_MOST, free=True)
LOGIN = Rule(Door.TRIED, most=FORM_AT_MOST, form=True)
FORM = Rule(Door.OPEN, most=FORM_AT_MOST, form=True)
RULES: tuple[tuple[str, str, Rule], ...] = (
    ("PUT", rf"{API}/assignments/[^/]+/upload/[^/]+", STREAM),
    ("PUT", rf"{API}/held-out/[^/]+", STREAM),
    ("PUT", rf"{API}/model-uploads/[^/]+/[^/]+", STREAM),
    ("POST", rf"{API}/agents", Rule(Door.TRIED, most=ENROLMENT_AT_MOST)),
    ("GET", rf"{API}/health(/ready)?", HEALTH),
    ("GET", "/metrics", KEYED),
    ("POST", rf"{API}/(plan|models|model-uploads/[^/]+/add|runs|runs/[^/]+/exports?)", COSTLY),
    ("POST", f"{API}/agents/me/key", RARE),
    ("POST", r"/admin", LOGIN),
    ("POST", r"/admin/.*", FORM),
)
_RULES = tuple((method, re.compile(path), rule) for method, path, rule in RULES)


def check_path(path: str) -> None:
    """Raise `PathRefused` for a path that a route's pattern could take for another than `rule_for` does: `$` also stands before a last newline."""
    if CONTROL.search(path):
        raise PathRefused("no path has control characters in it")


def rule_for(method: str, path: str) -> Rule:
    for wanted, pattern, rule in _RULES:
        if wanted == method and pattern.fullmatch(path):
            return rule
    return KEYED if path.startswith(f"{API}/") else PAGE


@dataclass(frozen=True)
class HowOften:
    """How often."""

    failures: Rate
    """wrong keys and tokens from one address"""
    calls: Rate
    """calls with one key that are no streams"""
    costly: Rate
    """calls with one key that begin work of seconds"""
    rare: Rate
    """calls of one agent that write into the audit log; a key that holds for the shortest time that can be set is changed as often"""
    keyless: Rate
    """what is asked from one address without a key: pages with all that they load, also of who is logged in"""


HONEST = HowOften(
    failures=Rate(at_once=60, per_s=2), calls=Rate(at_once=500, per_s=50), costly=Rate(at_once=60, per_s=2), rare=Rate(at_once=20, per_s=1 / 30),
    keyless=Rate(at_once=500, per_s=50),
)  # fmt: skip
"""What an honest agent or operator does is a tenth of it."""
