"""`client.agents`: who may take part, and what they have received."""

from collections.abc import Iterator

from fedcybgd.client.connection import Connection, segment
from fedcybgd.shared.contract.operators import TokenAnswer, TokenRequest
from fedcybgd.shared.contract.views import AgentView


class Agents:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def token(self, *, expires_in_s: float = 3600) -> TokenAnswer:
        """A token with which one agent can enrol, once, within so many seconds."""
        return self._connection.do(TokenAnswer, "/enrolment-tokens", TokenRequest.model_construct(expires_in_s=expires_in_s))

    def list(self) -> Iterator[AgentView]:
        """All agents by name."""
        return self._connection.pages(AgentView, "/agents")

    def revoke(self, name: str) -> AgentView:
        """Shut an agent out at once; what it holds is given to others. Raises `Refused`."""
        return self._connection.do(AgentView, f"/agents/{segment(name)}/revoke")

    def release(self, name: str) -> AgentView:
        """End the quarantine of an agent: it is asked for work again at once. Raises `Refused`."""
        return self._connection.do(AgentView, f"/agents/{segment(name)}/release")
