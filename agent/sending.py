"""Gets the bytes of a delta through to the coordinator, also past what lets only small bodies or short requests through."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import CoordinatorSaid, NotTheCoordinator, ProxyBodyLimit, Unreachable, VisitFailed
from fedcybgd.shared.contract.assignments import DeltaReceipt, DeltaSubmission, LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.training import TrainMetrics

SMALLEST = 16 << 10
"""A proxy that takes less than this is waited for: a person has to raise its limit."""
SHORT = 1 << 20
"""Pieces are not made smaller than this because of a cut or two: networks have them."""
CUTS = 3
"""So many one after another are a limit that closes the connection in place of saying so."""


class DeltaDamaged(Exception):
    """What lies in the outbox is not what was trained."""


class Delivery:
    """One delta on its way to the coordinator."""

    def __init__(
        self, client: Client, assignment: LeasedAssignment, delta: Path, metrics: TrainMetrics, told: Callable[[Exception], None]
    ) -> None:
        self._client, self._assignment, self._delta, self._metrics, self._told = client, assignment, delta, metrics, told
        self._sent_before = client.bytes_sent
        self.digest = digest_of_file(delta)

    def attempt(self) -> DeltaReceipt:
        """Upload what has not arrived yet, then submit; both may be repeated as often as needed.

        Raises `DeltaDamaged`, `VisitFailed` where the coordinator does not take the delta, `Unreachable` where a repeat may help.
        """
        try:
            send_file(self._client, self._assignment.assignment_id, self.digest, self._delta, self._told)
        except CoordinatorSaid as error:
            # An answer that got lost: the delta was taken already, and a repeat gets the same receipt.
            if error.code != "lease_lost":
                self._refused(error)
        try:
            return self._submit()
        except CoordinatorSaid as error:
            self._refused(error)

    def _submit(self) -> DeltaReceipt:
        metrics = self._metrics.model_copy(update={"bytes_up": self._client.bytes_sent - self._sent_before})
        submission = DeltaSubmission(attempt=self._assignment.attempt, digest=self.digest, metrics=metrics)
        receipt = self._client.submit(self._assignment.assignment_id, submission)
        if (receipt.assignment_id, receipt.attempt, receipt.digest) != (self._assignment.assignment_id, submission.attempt, self.digest):
            raise Unreachable("what answers has taken another delta, it says: something on the way gives answers of others")
        return receipt

    def _refused(self, error: CoordinatorSaid) -> NoReturn:
        """Raise what a refusal means for the visit."""
        match error.code:
            case "digest_mismatch" if digest_of_file(self._delta) != self.digest:
                raise DeltaDamaged(f"the delta in {self._delta} is damaged") from error
            case "upload_incomplete" | "digest_mismatch" | "offset_mismatch":
                raise Unreachable(f"the upload has to be repeated: {error.message}") from error
            case "delta_refused" | "delta_too_large":
                raise VisitFailed("delta_refused", error.message) from error
        raise error


def send_file(client: Client, assignment_id: str, digest: str, path: Path, told: Callable[[Exception], None]) -> None:
    """Upload what has not arrived yet, in pieces as large as they are let through.

    `told` hears of every piece that was too large. Raises `ProxyBodyLimit` when even the smallest is.
    """
    size = path.stat().st_size
    arrived = client.upload_offset(assignment_id, digest)
    while not arrived.complete and arrived.offset < size:
        begin = arrived.offset
        length = min(size - begin, client.piece or size)
        try:
            arrived = client.upload(assignment_id, digest, path, begin, length)
        except ProxyBodyLimit as error:
            told(error)
            if length <= SMALLEST:
                raise
            client.piece = max(SMALLEST, _half(length))
        except Unreachable as error:
            # Cut, and nothing was kept: a proxy that reads bodies whole before it hands them on, and ends requests that take long.
            # Or one that does not say by 413 that a body is too large for it.
            refused = isinstance(error, NotTheCoordinator) and 400 <= (error.status or 0) < 500
            if client.upload_offset(assignment_id, digest).offset == begin:
                client.cuts += 1
                least = SMALLEST if refused or client.cuts >= CUTS else SHORT
                if length > least:
                    client.piece = max(least, _half(length))
            else:
                client.cuts, client.further = 0, client.further + 1
            raise
        else:
            client.cuts = 0
            if arrived.complete or arrived.offset > begin:
                client.further += 1
                continue
            raise Unreachable("of a piece that was sent nothing arrived, it says")


def _half(length: int) -> int:
    """The largest power of two below `length`."""
    return 1 << ((length - 1).bit_length() - 1)
