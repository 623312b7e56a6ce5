"""`client.operators`: who steers the coordinator, and what each may do."""

from collections.abc import Iterator
from typing import Literal

from fedcybgd.client.connection import Connection, segment
from fedcybgd.shared.contract.operators import OperatorKeyAnswer, OperatorKeyRequest, OperatorRequest, OperatorView


class Operators:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, name: str, role: Literal["viewer", "operator", "owner"], *, expires_in_s: float | None = None) -> OperatorKeyAnswer:
        """A new operator, with the key that is shown this once. Raises `Refused`."""
        # What was not said is not sent: the coordinator has a default of its own.
        said = {"name", "role"} if expires_in_s is None else None
        request = OperatorRequest.model_construct(said, name=name, role=role, expires_in_s=expires_in_s)
        return self._connection.do(OperatorKeyAnswer, "/operators", request)

    def list(self) -> Iterator[OperatorView]:
        """All operators by name, those that were revoked too."""
        return self._connection.pages(OperatorView, "/operators")

    def me(self) -> OperatorView:
        """Whose key this client has."""
        return self._connection.read(OperatorView, "/operators/me")

    def rotate(self, name: str = "me", *, expires_in_s: float | None = None) -> OperatorKeyAnswer:
        """A new key; the old one is void at once. Without a name it is this client's own, which needs a new client then. Raises `Refused`."""
        request = OperatorKeyRequest.model_construct(set() if expires_in_s is None else None, expires_in_s=expires_in_s)
        return self._connection.do(OperatorKeyAnswer, f"/operators/{segment(name)}/rotate", request)

    def revoke(self, name: str) -> OperatorView:
        """Shut an operator out at once. Raises `Refused`."""
        return self._connection.do(OperatorView, f"/operators/{segment(name)}/revoke")
