"""Who asks, and from where."""

from dataclasses import dataclass
from typing import Literal

from fedcybgd.coordinator.domain.role import Role


@dataclass(frozen=True)
class Caller:
    """Whoever a request, or a command on the coordinator's own machine, comes from."""

    kind: Literal["operator", "agent", "nobody", "machine"]
    name: str = ""
    role: Role | None = None
    """of an operator"""
    address: str = ""
    """as the coordinator sees it: behind a proxy that it trusts, the proxy's word"""


NOBODY = Caller("nobody")
