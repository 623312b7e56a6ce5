"""What an attack is: an id that the threat model uses, what it tries, and whether that held."""

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

THREAT_MODEL = Path(__file__).parents[2] / "docs" / "threat-model.md"


class NotHeld(Exception):
    """The attack came through; the message is the evidence."""


@dataclass(frozen=True)
class Attack:
    id: str
    title: str
    go: Callable[[Any], str]
    """given the scene; its answer is the evidence that it held"""
    quick: bool


@dataclass(frozen=True)
class Verdict:
    id: str
    title: str
    held: bool
    named: bool
    evidence: str
    seconds: float

    @property
    def word(self) -> str:
        return "held" if self.held else "not held, and named so" if self.named else "NOT HELD"

    def json(self) -> dict[str, Any]:
        return asdict(self)


ATTACKS: list[Attack] = []


def attack(id: str, title: str, quick: bool = False) -> Callable[[Callable[[Any], str]], Callable[[Any], str]]:
    """Enter a function into the list. `quick`: it is tried at every change of the project, too."""

    def enter(go: Callable[[Any], str]) -> Callable[[Any], str]:
        assert id not in {other.id for other in ATTACKS}, id
        ATTACKS.append(Attack(id, title, go, quick))
        return go

    return enter


def held(holds: object, evidence: str) -> str:
    """The evidence, of one thing or the other."""
    if not holds:
        raise NotHeld(evidence)
    return evidence


def named() -> set[str]:
    """What the threat model itself says is not held."""
    section = THREAT_MODEL.read_text().partition("## What is not held")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([A-Z][A-Za-z0-9-]*)` \|", section, re.MULTILINE))


def tried(one: Attack, scene: Any) -> Verdict:
    began = time.monotonic()
    try:
        evidence, holds = one.go(scene), True
    except NotHeld as error:
        evidence, holds = str(error), False
    except Exception as error:  # an attack that breaks has shown nothing
        evidence, holds = f"the attack itself failed: {type(error).__name__}: {error}", False
    line = " ".join(evidence.split())[:300]
    return Verdict(one.id, one.title, holds, one.id in named(), line, round(time.monotonic() - began, 1))
