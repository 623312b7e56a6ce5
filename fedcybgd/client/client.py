"""`Client`: what an operator can ask of a coordinator, and tell it."""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from fedcybgd.client.agents import Agents
from fedcybgd.client.connection import DAY_S, Connection
from fedcybgd.client.event_stream import follow
from fedcybgd.client.held_out import HeldOutFiles
from fedcybgd.client.models import Models
from fedcybgd.client.operators import Operators
from fedcybgd.client.runs import Runs
from fedcybgd.shared.contract.agents import Health
from fedcybgd.shared.contract.operators import AuditEntry
from fedcybgd.shared.contract.run_views import EventEntry
from fedcybgd.shared.contract.views import ExposureView, StatusView

T = TypeVar("T")


class Client:
    """A coordinator, under an operator's key. Safe to use from several threads.

    Calls that change nothing, and uploads, are repeated for `patience_s` seconds while a coordinator that has answered before is away
    (restarted, behind a proxy that says so). Others are sent once. What the coordinator refuses is raised as `Refused` with its code.
    """

    def __init__(self, url: str | None = None, key: str | None = None, *, timeout_s: float = 60, patience_s: float = 30) -> None:
        """`url` and `key` are by default those of FEDCOORD_URL and FEDCOORD_OPERATOR_KEY. `timeout_s` is that of one call.

        Raises `AddressInvalid`, `KeyInvalid`; nothing is sent yet.
        """
        self.connection = Connection(url, key, timeout_s, patience_s)
        self.models = Models(self.connection)
        self.runs = Runs(self.connection)
        self.held_out = HeldOutFiles(self.connection)
        self.agents = Agents(self.connection)
        self.operators = Operators(self.connection)

    @property
    def url(self) -> str:
        return self.connection.url

    def status(self) -> StatusView:
        """Runs, agents, leases, bytes, jobs and the last errors."""
        return self.connection.read(StatusView, "/status")

    def health(self) -> Health:
        """Whether a coordinator is up; needs no key."""
        return self.connection.read(Health, "/health")

    def exposure(self, agent: str | None = None) -> Iterator[ExposureView]:
        """Which agent has received which block, at which version and codec, the newest first; of one agent, by name or id."""
        return self.connection.pages(ExposureView, "/exposure", {"agent": agent})

    def audit(self) -> Iterator[AuditEntry]:
        """Who did what, the oldest first."""
        return self.connection.pages(AuditEntry, "/audit")

    def events(self, after: int | None = None, *, timeout_s: float = DAY_S) -> Iterator[EventEntry]:
        """Events as they happen: those after an id, or from now on; it goes on with the next by itself where the line was cut.

        It ends after `timeout_s` seconds. Raises `Refused`, and `CoordinatorAway` where nobody answers for `patience_s`.
        """
        return follow(self.connection, after, timeout_s)

    def wait(self, look: Callable[[], T], until: Callable[[T], bool], *, timeout_s: float = DAY_S, every_s: float = 0.2) -> T:
        """What `look` gives, once `until` holds of it. Raises `TimedOut` after `timeout_s` seconds."""
        return self.connection.wait(look, until, every_s, timeout_s)

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
