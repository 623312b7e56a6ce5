"""Errors of the agent.

FedError (shared)
└── AgentError
    ├── ConfigError         the agent's own file is wrong
    │   ├── OptionWrong         of a command line
    │   └── AgentDiskFull       there is no room for it on its disk
    ├── NotEnrolled         there is no key yet
    ├── CoordinatorSaid     an answer that is not 2xx: code, status
    │   ├── KeyRefused      its key is void: no use to go on
    │   ├── VersionRefused  it speaks another version: one of the two has to be updated
    │   └── SignatureRefused    this request cannot be taken as it came; signed again, the next one may be
    ├── Unreachable         no answer of the coordinator: weather
    │   ├── NotTheCoordinator   something else answered
    │   │   ├── LoginPage       a page on which a person has to log in first
    │   │   └── ProxyBodyLimit  a proxy takes no body of that size
    │   ├── elsewhere: OtherHostFailed  another host, to which the coordinator sent
    │   ├── AnotherCoordinator  a coordinator, but not the one that this agent is enrolled at
    │   └── CoordinatorKeyDiffers   somebody who has not the key that the owner believes
    ├── LeaseGone           the work is not ours any more
    └── VisitFailed         a visit came to nothing, with the reason to report

BaseException
└── StopRequested           SIGTERM or SIGINT
"""

from typing import Any

from fedcybgd.shared.contract.assignments import ReturnReason, Trouble
from fedcybgd.shared.contract.errors import FedError


class AgentError(FedError):
    code = "agent_error"


class ConfigError(AgentError):
    code = "config_invalid"


class OptionWrong(ConfigError):
    """What was given on a command line."""

    usage = True


class AgentDiskFull(ConfigError):
    code = "disk_full"


class NotEnrolled(AgentError):
    code = "not_enrolled"


class CoordinatorSaid(AgentError):
    """The coordinator refused; `code` is its own."""

    def __init__(self, status: int, code: str, message: str, detail: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.detail = detail or {}
        self.status = status
        self.code = code


class KeyRefused(CoordinatorSaid):
    pass


class VersionRefused(CoordinatorSaid):
    pass


class SignatureRefused(CoordinatorSaid):
    pass


class Unreachable(AgentError):
    """The coordinator was not heard. That is weather: it passes, and says nothing of key, lease or data."""

    code = "unreachable"

    @property
    def trouble(self) -> Trouble:
        """The same for the coordinator, once it can be told: no word of what answered."""
        return Trouble.model_validate({"code": self.code})


class NotTheCoordinator(Unreachable):
    """A proxy, a login page, a gateway whose backend is away."""

    code = "not_a_coordinator"

    def __init__(self, message: str, status: int | None = None, retry_after_s: float = 0.0) -> None:
        """`retry_after_s`: for how long it asked to be left alone."""
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s

    @property
    def trouble(self) -> Trouble:
        return Trouble.model_validate({"code": NotTheCoordinator.code, "status": self.status})


class LoginPage(NotTheCoordinator):
    """By its looks: of a hotel, a VPN, a proxy. The coordinator is told of it as of anything else in its place."""

    code = "login_page"


class ProxyBodyLimit(NotTheCoordinator):
    """A proxy answered 413."""

    code = "proxy_body_limit"

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message, 413)
        self.size = size

    @property
    def trouble(self) -> Trouble:
        return Trouble.model_validate({"code": self.code, "status": self.status, "bytes": self.size})


class AnotherCoordinator(Unreachable):
    """Another home behind the same address, most likely by mistake."""

    code = "another_coordinator"


class CoordinatorKeyDiffers(Unreachable):
    """Somebody who answers in the coordinator's place, most likely, or the coordinator with another signing key."""

    code = "coordinator_key_differs"


class VisitFailed(AgentError):
    """`message` is for this agent's own log; `told` is what the coordinator reads, where that must not be the same."""

    def __init__(self, reason: ReturnReason, message: str, told: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.told = told


class ManifestInvalid(AgentError):
    """An assignment that this agent cannot read: a codec that it does not know, say. Its lease should be given back."""

    code = "manifest_invalid"

    def __init__(self, message: str, assignment_id: str, attempt: int) -> None:
        super().__init__(message)
        self.assignment_id = assignment_id
        self.attempt = attempt


class LeaseGone(AgentError):
    """The lease is not ours any more: leave the work alone."""

    code = "lease_gone"


class StopRequested(BaseException):
    """Raised where a signal finds the agent waiting: nobody who handles errors takes it for one of the rows, a file or the network."""

    def __init__(self) -> None:
        super().__init__("asked to stop")
