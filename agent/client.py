"""Speaks HTTP with the coordinator; knows nothing of training."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from pydantic import TypeAdapter, ValidationError

from agent.errors import AgentError, CoordinatorSaid, KeyRefused, ManifestInvalid, Unreachable
from shared.addresses import hint
from shared.protocol import (
    API,
    OFFERS,
    AgentSelf,
    Assignment,
    AssignmentState,
    ClaimRequest,
    DeltaReceipt,
    DeltaSubmission,
    EnrolAnswer,
    EnrolRequest,
    Id,
    Readiness,
    ReadinessReport,
    RenewAnswer,
    RenewRequest,
    ReturnRequest,
    UploadOffset,
)

TIMEOUT = httpx.Timeout(30, connect=10)
CHUNK = 1 << 20
_ID: TypeAdapter[str] = TypeAdapter(Id)


class Client:
    """One connection pool; safe to use from several threads. Every call may be repeated."""

    def __init__(self, url: str, key: str = "") -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url.rstrip("/") + API, headers=headers, timeout=TIMEOUT)
        self.url = url
        self.offers: str | None = None
        """Changes with the runs that the coordinator offers; as it said last"""
        self.bytes_sent = 0
        """Bytes of deltas that were sent"""

    def close(self) -> None:
        self._http.close()

    def health(self) -> dict[str, Any]:
        answer: dict[str, Any] = self._call("GET", "/health").json()
        return answer

    def enrol(self, request: EnrolRequest) -> EnrolAnswer:
        return EnrolAnswer.model_validate(self._call("POST", "/agents", json=request.model_dump()).json())

    def me(self) -> AgentSelf:
        answer = self._call("GET", "/agents/me")
        self.offers = answer.headers.get(OFFERS)
        return AgentSelf.model_validate(answer.json())

    def say_ready(self, runs: list[Readiness]) -> None:
        self._call("PUT", "/agents/me/readiness", json=ReadinessReport(runs=runs[:1000]).model_dump())

    def rotate_key(self) -> str:
        key: str = self._call("POST", "/agents/me/key").json()["key"]
        return key

    def run_file(self, run_id: str, name: str) -> bytes:
        return self._call("GET", f"/runs/{run_id}/files/{name}").content

    def claim(self, request: ClaimRequest, wait: float) -> Assignment | None:
        timeout = httpx.Timeout(30, read=wait + 30)
        answer = self._call("POST", "/assignments/claim", params={"wait": wait}, json=request.model_dump(), timeout=timeout)
        self.offers = answer.headers.get(OFFERS)
        if answer.status_code != 200:
            return None
        try:
            return Assignment.model_validate_json(answer.content)
        except ValidationError as error:
            raise _invalid(answer, error) from error

    def state(self, assignment_id: str) -> AssignmentState:
        return AssignmentState.model_validate(self._call("GET", f"/assignments/{assignment_id}").json())

    def renew(self, assignment_id: str, request: RenewRequest) -> RenewAnswer:
        return RenewAnswer.model_validate(self._call("POST", f"/assignments/{assignment_id}/renew", json=request.model_dump()).json())

    def give_back(self, assignment_id: str, request: ReturnRequest) -> None:
        self._call("POST", f"/assignments/{assignment_id}/return", json=request.model_dump())

    @contextlib.contextmanager
    def shard(self, assignment_id: str, digest: str, offset: int) -> Iterator[httpx.Response]:
        """Stream a shard from `offset` on; 206 when the coordinator follows, 200 when it starts over."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            with self._http.stream("GET", f"/assignments/{assignment_id}/shards/{digest}", headers=headers) as answer:
                if not answer.is_success and answer.status_code != 416:
                    answer.read()
                    self._raise(answer)
                yield answer
        except httpx.HTTPError as error:
            raise Unreachable(f"the transfer from {self.url} was cut: {error or type(error).__name__}") from error

    def upload_offset(self, assignment_id: str, digest: str) -> UploadOffset:
        return UploadOffset.model_validate(self._call("GET", f"/assignments/{assignment_id}/upload/{digest}").json())

    def upload(self, assignment_id: str, digest: str, path: Path, offset: int) -> UploadOffset:
        """Send the bytes of `path` from `offset` on; `bytes_sent` counts them."""
        size = path.stat().st_size - offset

        def body() -> Iterator[bytes]:
            while chunk := file.read(CHUNK):
                yield chunk
                self.bytes_sent += len(chunk)

        with path.open("rb") as file:
            file.seek(offset)
            answer = self._call(
                "PUT", f"/assignments/{assignment_id}/upload/{digest}", params={"offset": offset},
                content=body(), headers={"Content-Length": str(size)},
            )  # fmt: skip
        return UploadOffset.model_validate(answer.json())

    def submit(self, assignment_id: str, submission: DeltaSubmission) -> DeltaReceipt:
        body = submission.model_dump(mode="json")
        return DeltaReceipt.model_validate(self._call("POST", f"/assignments/{assignment_id}/delta", json=body, timeout=120).json())

    def _call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise Unreachable(f"no coordinator answers at {self.url}: {error or type(error).__name__}{hint(self.url, error)}") from error
        if not answer.is_success:
            self._raise(answer)
        return answer

    def _raise(self, answer: httpx.Response) -> None:
        try:
            body = answer.json()
            code, message, detail = body["code"], body["message"], body.get("detail", {})
        except (ValueError, KeyError, TypeError):
            code, message, detail = "not_a_coordinator", f"{self.url} answered {answer.status_code}: is it a coordinator?", {}
        kind = KeyRefused if answer.status_code == 401 or code == "agent_revoked" else CoordinatorSaid
        raise kind(answer.status_code, code, message, **detail)


def _invalid(answer: httpx.Response, error: ValidationError) -> AgentError:
    """What is wrong with an assignment that this agent cannot read; its lease can be given back if its id came through."""
    first = error.errors()[0]
    what = f"{'.'.join(str(p) for p in first['loc'])}: {first['msg'].removeprefix('Value error, ')}"
    try:
        body = answer.json()
        # It becomes part of a URL: what is no id is not sent back.
        assignment_id, attempt = _ID.validate_python(body["assignment_id"]), int(body["attempt"])
    except (ValueError, KeyError, TypeError):
        assignment_id, attempt = "", 0
    return ManifestInvalid(f"the assignment cannot be read ({what}); is this agent of the coordinator's version?", assignment_id, attempt)
