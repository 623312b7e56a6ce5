"""Kills agents of a federation while they train, and starts them again."""

import random
from collections.abc import Callable

from fedcybgd.local.federation import Federation
from fedcybgd.shared.contract.views import RunView

SHARE = 0.25
"""Of the visits, so many are cut off; the first one that is seen always is"""
AWAY_S = (1.0, 4.0)
"""For how long a killed agent is away, at the least and at the most"""


class Chaos:
    """Whose turn it is, is drawn from a seed; what a run comes to does not depend on it, where its agents come back in time."""

    def __init__(self, federation: Federation, seed: int, say: Callable[[str], None]) -> None:
        self._federation, self._say = federation, say
        self._draw = random.Random(seed)  # noqa: S311 - no secret
        self._seen: set[str] = set()
        self._back_at: dict[str, float] = {}
        self.killed: list[str] = []
        """names of agents, as often as they were"""

    def look(self, run: RunView, now: float) -> None:
        """Kill who is drawn of those that hold a lease, and start again whose time has come. `now` is in seconds, of any clock that goes on."""
        for name, moment in list(self._back_at.items()):
            if now >= moment:
                del self._back_at[name]
                self._federation.agents[name].start(wait=False)
                self._federation.away.discard(name)
                self._say(f"{name} is started again")
        for visit in run.current:
            agent = self._federation.agents.get(visit.agent or "")
            if visit.state != "leased" or visit.id in self._seen or agent is None or agent.name in self._back_at:
                continue
            self._seen.add(visit.id)
            if not self.killed or self._draw.random() < SHARE:
                self._federation.away.add(agent.name)
                agent.kill()
                self.killed.append(agent.name)
                self._back_at[agent.name] = now + self._draw.uniform(*AWAY_S)
                self._say(f"{agent.name} is killed while it trains {visit.block} (round {visit.round})")
