"""For how long an agent that has no work waits for it in one call: as its coordinator asks, unless something on the way cuts that off."""

import random
import time
from collections.abc import Callable

from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import Unreachable
from fedcybgd.shared.contract.agents import ClaimRequest
from fedcybgd.shared.contract.assignments import LeasedAssignment

CUTS = 2
"""One may be a coordinator that starts again"""


class ClaimPace:
    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._clock, self._cuts = client, clock, 0

    def longest_s(self, usual_s: float) -> float:
        """Seconds; never less than usual."""
        return usual_s if self._cuts >= CUTS else max(usual_s, self._client.wait_s or 0.0)

    def claim(self, request: ClaimRequest, usual_s: float) -> LeasedAssignment | None:
        """Ask for work once. Raises what the client does."""
        # Jitter: agents that began together must not go on asking together.
        wait, began = self.longest_s(usual_s) * random.uniform(0.8, 1.0), self._clock()  # noqa: S311
        try:
            found = self._client.claim(request, wait)
        except Unreachable:
            if self._cuts < CUTS and wait > usual_s and self._clock() - began > usual_s / 2:
                self._cuts += 1
            raise
        if self._cuts < CUTS and wait > usual_s:
            self._cuts = 0
        return found
