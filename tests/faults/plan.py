"""What happens to a run, drawn from a seed: which faults, when, to whom."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.faults.fleet import COORDINATOR

AGENTS = 3
ROUNDS = 8.0
"""of a run, within which its faults begin"""
WITHIN_THE_LEASE_S, BEYOND_THE_LEASE_S = (0.5, 6.0), (4.0, 10.0)
FOREIGN = (200, 302, 403, 404, 413, 502)
BLOBS = ("flipped", "missing", "empty", "torn")
OF_THE_COORDINATOR = (
    "kill web", "kill web", "kill engine", "stop web", "stop engine", "full disk", "few files", "clock", "blob",
)  # fmt: skip
OF_AN_AGENT = (
    "kill daemon",
    "kill daemon",
    "kill trainer",
    "stop daemon",
    "stop trainer",
    "full disk",
    "few files",
    "cached blob",
    "replica",
)
OF_THE_WIRE = ("cut_up", "cut_down", "delay", "throttle", "black_hole", "reset", "duplicate", "drop_answer", "drop_answer", "foreign")
OF_POSTGRESQL = ("kill database", "freeze database")
STORAGE = "storage"
OF_THE_STORAGE = (
    "kill storage", "kill storage", "freeze storage", "foreign", "foreign", "delay", "throttle", "black_hole", "reset", "cut_up", "cut_down",
    "drop_answer", "duplicate", "copied blob", "blob",
)  # fmt: skip
"""The server, the line to it, the copies on coordinators' disks, and what lies in it"""
FAULTS_OF_THE_STORAGE = 3
UNAVAILABLE = (500, 502, 503)
"""what a storage that is busy, or a proxy before it, answers"""
ONCE = frozenset({"kill trainer", "full disk", "few files"})
"""What an agent gives its work back for: twice, and another agent may be asked, whose weights are others. Once a run, all of them together."""


@dataclass(frozen=True)
class Fault:
    at: float
    """rounds that are done by then"""
    kind: str
    target: str
    """the coordinator, an agent, or the wire of an agent"""
    seconds: float = 0.0
    amount: int = 0
    how: str = ""

    def __str__(self) -> str:
        more = "".join(f" {part}" for part in (self.how, self.amount or "", f"{self.seconds:.1f} s" if self.seconds else "") if part)
        return f"round {self.at:.1f}: {self.target}: {self.kind}{more}"


@dataclass(frozen=True)
class Plan:
    seed: int
    flavour: str
    postgresql: bool
    faults: Sequence[Fault]

    @property
    def exact(self) -> bool:
        """Whether the run must end bit-identical to the undisturbed one. An agent whose copy has its key is away for longer than a lease."""
        return self.flavour != "wave" and not any(fault.kind == "replica" for fault in self.faults)


def draw(seed: int) -> Plan:
    """Seeds of one class stand together, so that one system serves them.

    Of 20, seven are plain, one of expanded visits, one of whole models, one of adapters, four with error feedback, three waves, three on PostgreSQL.
    """
    chosen = random.Random(seed)
    place = seed % 20
    flavour = (
        "plain"
        if place < 7 or place >= 17
        else "corrected"
        if place < 8
        else "whole"
        if place < 9
        else "adapters"
        if place < 10
        else "feedback"
        if place < 14
        else "wave"
    )
    postgresql = place >= 17
    kinds = [(kind, COORDINATOR) for kind in OF_THE_COORDINATOR] * 2
    kinds += [(kind, "agent") for kind in OF_AN_AGENT] + [(kind, "wire") for kind in OF_THE_WIRE]
    kinds += [(kind, "database") for kind in OF_POSTGRESQL * 6] if postgresql else []
    faults: list[Fault] = []
    given_back = False
    while len(faults) < chosen.randint(4, 6) or len(faults) < 4:
        kind, target = chosen.choice(kinds)
        agent = chosen.randrange(AGENTS)
        fault = _fault(chosen, kind, f"{target}-{agent}" if target in ("agent", "wire") else target, flavour)
        if flavour != "wave" and target == "agent" and kind in ONCE:
            if given_back:
                continue
            given_back = True
            # There is room all the while, as far as an agent can see, so it soon tries again.
            fault = replace(fault, seconds=min(fault.seconds, 2.0))
        faults.append(fault)
    return Plan(seed, flavour, postgresql, sorted(faults, key=lambda f: f.at))


def draw_for_several(seed: int) -> Plan:
    """The same for several coordinators on PostgreSQL. Their clocks agree: one that is wrong by an hour ends the leases of all."""
    plan = draw(seed)
    return replace(plan, postgresql=True, faults=[fault for fault in plan.faults if fault.kind != "clock"])


def with_storage(plan: Plan) -> Plan:
    """The same where blobs lie in object storage, to which something happens too."""
    chosen = random.Random(f"storage {plan.seed}")
    more = []
    for kind in chosen.sample(OF_THE_STORAGE, FAULTS_OF_THE_STORAGE):
        target = COORDINATOR if kind.endswith("blob") else STORAGE
        fault = _fault(chosen, kind, target, plan.flavour)
        more.append(replace(fault, amount=chosen.choice(UNAVAILABLE)) if kind == "foreign" else fault)
    return replace(plan, faults=sorted([*plan.faults, *more], key=lambda f: f.at))


def draw_few(seed: int, point: str, agents: int) -> Plan:
    """For CI: a short run, with a death at a point and a fault that is soon over."""
    chosen = random.Random(seed)
    faults = [Fault(0.0, "point", "whoever comes there", how=point)]
    for kind, target in chosen.sample([*((k, COORDINATOR) for k in OF_THE_COORDINATOR), *((k, "wire") for k in OF_THE_WIRE)], 1):
        fault = _fault(chosen, kind, target if target == COORDINATOR else f"{target}-{chosen.randrange(agents)}", "short")
        faults.append(replace(fault, at=fault.at / 3, seconds=min(fault.seconds, 2.0)))
    return Plan(seed, "short", False, sorted(faults, key=lambda f: f.at))


def _fault(chosen: random.Random, kind: str, target: str, flavour: str) -> Fault:
    fault = Fault(round(chosen.uniform(0.0, ROUNDS / 2 if flavour == "wave" else ROUNDS), 2), kind, target)
    whose = target.split("-", maxsplit=1)[0]
    span = BEYOND_THE_LEASE_S if flavour == "wave" and whose not in (COORDINATOR, STORAGE) else WITHIN_THE_LEASE_S
    seconds = round(chosen.uniform(*span), 1)
    if whose == "wire" or (whose == STORAGE and not kind.endswith(STORAGE)):
        amount = {
            "cut_up": chosen.choice((1, 100, 700, 5000)), "cut_down": chosen.choice((0, 1, 100, 300, 5000)),
            "delay": chosen.choice((200, 1000, 3000)), "throttle": chosen.choice((2000, 20000)), "foreign": chosen.choice(FOREIGN),
        }.get(kind, 0)  # fmt: skip
        return replace(fault, seconds=seconds, amount=amount)
    if kind.endswith("blob"):
        return replace(fault, how=chosen.choice(BLOBS))
    if kind == "clock":
        return replace(fault, seconds=seconds, amount=chosen.choice((-86_400, -3_600, -30, 30, 3_600, 86_400)))
    if kind == "replica":
        return replace(fault, seconds=seconds + 2)
    return fault if kind.startswith("kill") and whose not in ("database", STORAGE) else replace(fault, seconds=seconds)
