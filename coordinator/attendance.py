"""Who is there: the keys that were shown lately, and the signs of life that are not written yet. Idle agents cost no database."""

import asyncio
import base64
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime

from anyio import CapacityLimiter, to_thread
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy.orm import Session

from fedcybgd.coordinator.db.base import Database, utcnow
from fedcybgd.coordinator.db.outage import is_away
from fedcybgd.coordinator.domain.agent import AgentState, needs_seen
from fedcybgd.coordinator.services.agents import arrival, identity, presence
from fedcybgd.shared.contract.agents import DeclaredLimits

MOST_KNOWN = 100_000
KNOWN_FOR_S = 300.0
"""After so long a key is looked up again, should a signal have been lost. What is revoked or rotated is forgotten at once."""
WRITE_EVERY_S = 5.0
"""Signs of life are written together; those of so many seconds are lost when the process dies."""


@dataclass(slots=True)
class Known:
    """An agent as the database had it, and what was written of it since."""

    id: str
    name: str
    key_hash: str
    there: bool
    """it counts as active"""
    limits: DeclaredLimits
    """as it declared them last"""
    last_seen_at: datetime | None
    """with the signs of life that wait to be written"""
    may_hold: bool
    """whether it may hold a lease, so that its claim has to look"""
    until: float
    public_key: Ed25519PublicKey | None
    """with which it signs"""
    daemon: str | None
    """the word of the daemon that asks with the key"""
    key_expires_at: datetime | None


class _Look:
    """A look for a key that is under way."""

    def __init__(self) -> None:
        self.changed: set[str] = set()
        """ids of agents that have changed since it began"""
        self.all_changed = False


class Attendance:
    """May be used from any thread; `sign_in` from the event loop only."""

    def __init__(self, database: Database, hears: Callable[[], bool]) -> None:
        """`hears`: whether it is told at once what others revoke and change; while it is not, keys are looked up each time."""
        self._database, self._hears = database, hears
        self._lock, self._writing = threading.Lock(), asyncio.Lock()
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._hashes: dict[str, str] = {}
        """id → hash of the key"""
        self._looks: set[_Look] = set()
        self._signs: dict[str, datetime] = {}
        self._written_at = time.monotonic()

    async def who(self, hashed: str, lane: CapacityLimiter | None = None) -> Known:
        """The agent whose key has this hash; raises `Unauthorized` and `AgentRevoked`. One that is not known yet is looked up by a thread of `lane`."""
        with self._lock:
            known = self._known.get(hashed)
            if known is not None and known.until > time.monotonic():
                self._known.move_to_end(hashed)
            else:
                known = None
        if known is None or not self._hears():
            try:
                known = await to_thread.run_sync(self._look_up, hashed, limiter=lane)
            except Exception as error:
                if known is None or not is_away(error):
                    raise  # of a database that is away nobody changes anything
        identity.check_key(known.name, known.key_expires_at, utcnow())
        return known

    def _look_up(self, hashed: str) -> Known:
        look = _Look()
        with self._lock:
            self._looks.add(look)
        try:
            with self._database.reading() as session:
                found = identity.look_up(session, hashed)
            known = Known(
                found.id,
                found.name,
                hashed,
                found.state == AgentState.ACTIVE,
                found.limits,
                found.last_seen_at,
                found.holds,
                time.monotonic() + KNOWN_FOR_S,
                Ed25519PublicKey.from_public_bytes(base64.b64decode(found.public_key)) if found.public_key else None,
                found.daemon,
                found.key_expires_at,
            )
            with self._lock:
                if not look.all_changed and known.id not in look.changed:  # else it may be of before a revocation
                    self._known[hashed], self._hashes[known.id] = known, hashed
                while len(self._known) > MOST_KNOWN:
                    _, oldest = self._known.popitem(last=False)
                    self._hashes.pop(oldest.id, None)
            return known
        finally:
            with self._lock:
                self._looks.discard(look)

    def forget(self, agents: Collection[str]) -> None:
        """Look these up again when they come: they were revoked, have another key, or are silent."""
        with self._lock:
            self._forget(agents)

    def _forget(self, agents: Collection[str]) -> None:
        self._have_changed(agents)
        for agent in agents:
            self._known.pop(self._hashes.pop(agent, ""), None)

    def _have_changed(self, agents: Collection[str]) -> None:
        for look in self._looks:
            look.changed.update(agents)

    def forget_all(self) -> None:
        with self._lock:
            for look in self._looks:
                look.all_changed = True
            self._known.clear()
            self._hashes.clear()

    def holds(self, agents: Collection[str]) -> None:
        """These have a lease since, wherever it was given: whichever claim of theirs comes here next has to look."""
        with self._lock:
            self._have_changed(agents)
            for agent in agents:
                if (known := self._known.get(self._hashes.get(agent, ""))) is not None:
                    known.may_hold = True

    async def come(
        self, agent: Known, daemon: str | None, limits: DeclaredLimits, clock: Callable[[], datetime], before: Callable[[Session], None]
    ) -> None:
        """An agent asks for work of which not all is known: what `arrival.came` says of it is written, and known from then on."""
        came = await to_thread.run_sync(arrival.came, self._database, agent.id, daemon, limits, clock, before)
        agent.there, agent.daemon, agent.limits, agent.last_seen_at = True, came.daemon, came.limits, came.last_seen_at

    def sign(self, agent: Known, now: datetime) -> None:
        """Note a sign of life; it is written with those of others."""
        if not agent.there or needs_seen(AgentState.ACTIVE, agent.last_seen_at, now):
            with self._lock:
                self._signs[agent.id] = now
            agent.last_seen_at = now

    async def sign_in(self, agent: Known, now: datetime) -> None:
        """Note a sign of life. Of an agent that did not count as there it is written before its call goes on, with those who came with it."""
        self.sign(agent, now)
        if not agent.there:
            await self.write()
            agent.there = True

    async def write_if_due(self, every_s: float = WRITE_EVERY_S) -> None:
        if time.monotonic() - self._written_at >= every_s:
            await self.write()

    async def write(self) -> None:
        """Write what was noted. Whoever comes while others are written is written with the next."""
        async with self._writing:
            with self._lock:
                signs, self._signs = self._signs, {}
            self._written_at = time.monotonic()
            if not signs:
                return
            try:
                await to_thread.run_sync(self._write, signs)
            except BaseException:
                with self._lock:
                    self._signs = signs | self._signs
                raise

    def _write(self, signs: dict[str, datetime]) -> None:
        with self._database.transaction() as session:
            presence.note(session, signs, utcnow())
