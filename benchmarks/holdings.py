"""What agents hold of the shards of a run in one process, and the cheapest way from there to the next ones."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fedcybgd.coordinator.domain.jobs.payloads import EncodedRef, PatchMade
from fedcybgd.shared.contract.manifests import PatchRef

MAX_STEPS = 4
"""Patches in a row, as coordinators have it."""


@dataclass
class Holdings:
    """What one agent has in its cache, by digest, and what crossed its wire, in bytes."""

    digests: set[str] = field(default_factory=set)
    down: int = 0
    up: int = 0


@dataclass
class Patches:
    """By the shards that they lead to; and in which rounds blocks changed."""

    to: dict[str, list[PatchMade]] = field(default_factory=dict)
    changes: dict[str, list[int]] = field(default_factory=dict)

    def add(self, number: int, blocks: Iterable[str], made: Iterable[PatchMade]) -> None:
        """What a round made."""
        for block in blocks:
            self.changes.setdefault(block, []).append(number)
        for patch in made:
            if patch.target != patch.base and all(known.base != patch.base for known in self.to.setdefault(patch.target, [])):
                self.to[patch.target].append(patch)

    def way(self, target: str, held: set[str], whole: int) -> list[PatchRef]:
        """The cheapest one from something that is held, the last step first; none where the whole shard is no dearer."""
        found = self._way(target, held, MAX_STEPS) or []
        return list(found) if sum(step.size for step in found) < whole else []

    def _way(self, target: str, held: set[str], most: int) -> list[PatchMade] | None:
        if target in held:
            return []
        ways = [[step, *on] for step in self.to.get(target, ()) if most and (on := self._way(step.base, held, most - 1)) is not None]
        return min(ways, key=lambda way: sum(step.size for step in way), default=None)

    def before(self, number: int, agents: int, seats: int, shards: Sequence[tuple[str, EncodedRef]]) -> list[PatchMade]:
        """The steps to these shards of blocks since an agent was last here that comes again after this round."""
        turn, found = math.ceil(agents / seats), list[PatchMade]()
        for block, shard in shards:
            in_turn, changed = (sum(r > number - window for r in self.changes.get(block, ())) for window in (turn, 2 * turn - 1))
            target = shard.digest
            for _ in range(min(changed, MAX_STEPS - 1) if in_turn < MAX_STEPS else 0):
                steps = [step for step in self.to.get(target, ()) if step.kind == "difference"]
                if not steps:
                    break
                found.append(min(steps, key=lambda step: step.size))
                target = found[-1].base
        return found
