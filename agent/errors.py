"""Errors of the agent.

FedError (shared)
└── AgentError
    ├── ConfigError         the agent's own file is wrong
    ├── NotEnrolled         there is no key yet
    ├── CoordinatorSaid     an answer that is not 2xx: code, status
    │   └── KeyRefused      401 or 403: no use to go on
    ├── Unreachable         no answer
    ├── VisitFailed         a visit came to nothing, with the reason to report
    └── StopRequested       SIGTERM or SIGINT
"""

from typing import Any

from shared.errors import FedError
from shared.protocol import ReturnReason


class AgentError(FedError):
    code = "agent_error"


class ConfigError(AgentError):
    code = "config_invalid"


class NotEnrolled(AgentError):
    code = "not_enrolled"


class CoordinatorSaid(AgentError):
    """The coordinator refused; `code` is its own."""

    def __init__(self, status: int, code: str, message: str, **detail: Any) -> None:
        super().__init__(message, **detail)
        self.status = status
        self.code = code


class KeyRefused(CoordinatorSaid):
    pass


class Unreachable(AgentError):
    code = "unreachable"


class VisitFailed(AgentError):
    def __init__(self, reason: ReturnReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


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


class StopRequested(AgentError):
    code = "stop_requested"

    def __init__(self) -> None:
        super().__init__("asked to stop")
