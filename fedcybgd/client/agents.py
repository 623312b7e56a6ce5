"""`client.agents`: who may take part, and what they have received."""

from collections.abc import Iterator

from fedcybgd.client.connection import Connection, segment
from fedcybgd.shared.contract.operators import AgentKeyRequest, AgentNameRequest, TokenAnswer, TokenRequest, TokenView
from fedcybgd.shared.contract.views import AgentView


class Agents:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def token(self, *, expires_in_s: float = 3600, uses: int = 1) -> TokenAnswer:
        """A token with which one agent, or so many, can enrol within so many seconds."""
        # A coordinator that is older knows no number of uses.
        said = {"expires_in_s"} if uses == 1 else None
        return self._connection.do(
            TokenAnswer, "/enrolment-tokens", TokenRequest.model_construct(said, expires_in_s=expires_in_s, uses=uses)
        )

    def tokens(self) -> Iterator[TokenView]:
        """All tokens, the newest first; never their secrets."""
        return self._connection.pages(TokenView, "/enrolment-tokens")

    def withdraw(self, token_id: str) -> None:
        """Nobody enrols with this token any more. Raises `Refused`."""
        self._connection.send("POST", f"/enrolment-tokens/{segment(token_id)}/withdraw")

    def reissue(self, name: str, *, expires_in_s: float = 3600) -> TokenAnswer:
        """Take an agent's key away at once; with the token its owner enrols it again as the same agent. Raises `Refused`."""
        return self._connection.do(TokenAnswer, f"/agents/{segment(name)}/reissue", AgentKeyRequest(expires_in_s=expires_in_s))

    def get(self, name: str) -> AgentView:
        """One agent by its name or id. Raises `Refused` with `not_found`."""
        return self._connection.read(AgentView, f"/agents/{segment(name)}")

    def list(self) -> Iterator[AgentView]:
        """All agents by name."""
        return self._connection.pages(AgentView, "/agents")

    def revoke(self, name: str) -> AgentView:
        """Shut an agent out at once; what it holds is given to others. Raises `Refused`."""
        return self._connection.do(AgentView, f"/agents/{segment(name)}/revoke")

    def rename(self, name: str, to: str) -> AgentView:
        """Give an agent another name. Raises `Refused` (`agent_name_taken`; `agent_named`: a run file names it)."""
        return self._connection.do(AgentView, f"/agents/{segment(name)}/rename", AgentNameRequest(name=to))

    def delete(self, name: str) -> None:
        """Delete an agent that was revoked and has worked in no run that is still there. Raises `Refused` (`agent_in_use`)."""
        self._connection.send("POST", f"/agents/{segment(name)}/delete")

    def release(self, name: str) -> AgentView:
        """End the quarantine of an agent: it is asked for work again at once. Raises `Refused`."""
        return self._connection.do(AgentView, f"/agents/{segment(name)}/release")
