"""Speaks HTTP with the coordinator; knows nothing of training.

Only an answer with the coordinator's own JSON is the coordinator's. Whatever else answers (a proxy, a login page, another
coordinator) is `Unreachable`, on every call.
"""

import contextlib
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import httpx
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from fedcybgd.agent.answers import ErrorSaid, body_of, error_of_another, identity_of, object_of, something_else, speaks, wait_said
from fedcybgd.agent.connection import connect, why
from fedcybgd.agent.elsewhere import OtherHosts
from fedcybgd.agent.errors import (
    AgentError,
    AnotherCoordinator,
    CoordinatorSaid,
    KeyRefused,
    ManifestInvalid,
    SignatureRefused,
    Unreachable,
    VersionRefused,
)
from fedcybgd.agent.key_life import KeyLife
from fedcybgd.agent.proof import Proof
from fedcybgd.agent.signing import Signer
from fedcybgd.shared.contract.agents import (
    AgentSelf,
    ClaimRequest,
    EnrolAnswer,
    EnrolRequest,
    Health,
    KeyRequest,
    NewKey,
    ReadinessReport,
    RunReadiness,
)
from fedcybgd.shared.contract.assignments import (
    AssignmentAnswer,
    DeltaReceipt,
    DeltaSubmission,
    LeasedAssignment,
    RenewAnswer,
    RenewRequest,
    ReturnRequest,
    UploadOffset,
)
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.contract.versions import SIGNING, SPOKEN, VERSION
from fedcybgd.shared.contract.words import DAEMON, ELSEWHERE, OFFERS, Id, problem_in_words
from fedcybgd.shared.host.bodies import BodyInvalid

CHUNK = 1 << 20
MOST_JSON = 16 << 20
"""Bytes of an answer in JSON; a manifest of thousands of blocks and patches has one or two million."""
MOST_FILE = 256 << 20
"""Bytes of a tokenizer; the largest that are published have some 40 million."""
ABOUT_THE_BYTES = frozenset({"content-encoding", "content-length", "transfer-encoding"})
"""Headings that say how a body came; it is plain by the time anybody reads it."""
ENDS = frozenset({"unauthorized", "agent_revoked", "agent_key_expired"})
"""The things that a coordinator can say to end an agent."""
NOT_NOW = frozenset({"signature_stale", "signature_repeated", "signature_wrong"})
"""A request that is signed again may be another one: a clock was wrong, or something on the way has changed or doubled it."""
KINDS: dict[str, type[CoordinatorSaid]] = {
    **dict.fromkeys(ENDS, KeyRefused), **dict.fromkeys(NOT_NOW, SignatureRefused), "version_unsupported": VersionRefused
}  # fmt: skip
T = TypeVar("T", bound=BaseModel)
_ID: TypeAdapter[str] = TypeAdapter(Id)
_ATTEMPT: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(strict=True, ge=1, lt=2**31)])


class Client:
    """One connection pool; safe to use from several threads. Every call may be repeated."""

    def __init__(
        self,
        url: str,
        key: str | Signer = "",
        coordinator: str | None = None,
        authority: Path | None = None,
        proof: Proof | None = None,
        storage: Sequence[str] | None = None,
    ) -> None:
        """`storage`: the only other hosts that shards may be fetched from, as in policy.toml."""
        self._http = connect(url, key, authority)
        self.signer = key if isinstance(key, Signer) else None
        self.url, self.proof = url, proof or Proof()
        self.elsewhere = OtherHosts(storage)
        self.offers: str | None = None
        """Changes with the runs that the coordinator offers; as it said last"""
        self.wait_s: float | None = None
        """For how long a claim is to wait; as the coordinator said last"""
        self.coordinator = coordinator
        """Identity of the coordinator that this agent is enrolled at; learned from its first good answer"""
        self.piece: int | None = None
        """Bytes of an upload that something on the way lets through at once, once that was found out"""
        self.cuts = 0
        """Pieces of uploads one after another that were cut, and nothing of them kept"""
        self.further = 0
        """How often an upload got further"""
        self.bytes_sent = 0
        """Bytes of deltas that were sent"""
        self.answered_at = 0.0
        """When the coordinator answered last, in Unix time"""
        self.takes_signatures = False
        """Whether the coordinator does, by its last good answer"""
        self.headings_come = True
        """Whether its last good answer had the heading that each has, and that something on the way may take out"""
        self.key_life: KeyLife | None = None
        """Of the key, as it was told last; None: it does not end"""

    def use(self, key: str | Signer) -> None:
        """Make requests with another key from now on."""
        self.signer = key if isinstance(key, Signer) else None
        self._http.auth = self.signer or httpx.Auth()
        self._http.headers.pop("Authorization", None)
        if isinstance(key, str):
            self._http.headers["Authorization"] = f"Bearer {key}"

    def close(self) -> None:
        self._http.close()
        self.elsewhere.close()

    def as_daemon(self) -> None:
        """Say with every call from now on which start of the daemon asks: what another one is told is not for this one."""
        self._http.headers[DAEMON] = secrets.token_hex(8)

    def health(self) -> Health:
        return self._model(Health, "GET", "/health")

    def enrol(self, request: EnrolRequest) -> EnrolAnswer:
        return self._model(EnrolAnswer, "POST", "/agents", json=request.model_dump(exclude_none=True))

    def me(self) -> AgentSelf:
        answer = self._call("GET", "/agents/me")
        self.offers = answer.headers.get(OFFERS)
        me = self._read(AgentSelf, answer)
        self.key_life = None if me.key_renews_in_s is None else KeyLife(me.key_renews_in_s)
        return me

    def say_ready(self, runs: list[RunReadiness]) -> None:
        self._call("PUT", "/agents/me/readiness", json=ReadinessReport(runs=runs[:1000]).model_dump())

    def rotate_key(self, public_key: str | None = None) -> str | None:
        """Another key: the secret, or None where the coordinator has taken the public key."""
        body = None if public_key is None else KeyRequest(public_key=public_key).model_dump()
        return self._model(NewKey, "POST", "/agents/me/key", json=body).key

    def run_file(self, run_id: str, ref: FileRef) -> bytes:
        return self._call("GET", f"/runs/{run_id}/files/{ref.name}", limit=MOST_FILE, digest=ref.digest).content

    def claim(self, request: ClaimRequest, wait: float) -> LeasedAssignment | None:
        timeout = httpx.Timeout(30, read=wait + 30)
        answer = self._call("POST", "/assignments/claim", params={"wait": wait}, json=request.model_dump(), timeout=timeout)
        self.offers = answer.headers.get(OFFERS)
        if answer.status_code == 204:
            self.wait_s = wait_said(answer.headers)
            return None
        try:
            return LeasedAssignment.model_validate_json(answer.content)
        except ValidationError as error:
            raise self._no_assignment(answer, error) from error

    def state(self, assignment_id: str) -> AssignmentAnswer:
        return self._model(AssignmentAnswer, "GET", f"/assignments/{assignment_id}")

    def renew(self, assignment_id: str, request: RenewRequest) -> RenewAnswer:
        return self._model(RenewAnswer, "POST", f"/assignments/{assignment_id}/renew", json=request.model_dump())

    def give_back(self, assignment_id: str, request: ReturnRequest) -> None:
        self._model(AssignmentAnswer, "POST", f"/assignments/{assignment_id}/return", json=request.model_dump())

    @contextlib.contextmanager
    def shard(self, assignment_id: str, digest: str, offset: int, more: dict[str, str] | None = None) -> Iterator[httpx.Response]:
        """Stream a shard from `offset` on; 206 when the coordinator follows, 200 when it starts over. It may be another host's answer."""
        headers = self.proof.headings() | self.elsewhere.headings() | ({"Range": f"bytes={offset}-"} if offset else {}) | (more or {})
        try:
            with self._http.stream("GET", f"/assignments/{assignment_id}/shards/{digest}", headers=headers) as answer:
                self._recognise(answer)
                sent_to = self._sent_to(answer)
                if sent_to is None and answer.status_code not in ((200, 206, 304, 416) if more else (200, 206, 416)):
                    self._raise(answer, body_of(answer, MOST_JSON))
                if "html" in answer.headers.get("content-type", "") and identity_of(answer.headers) is None:
                    raise something_else(self.url, answer.status_code, answer.headers)
                if sent_to is None:
                    yield answer
        except (httpx.HTTPError, BodyInvalid) as error:
            raise Unreachable(f"the transfer from {self.url} was cut: {why(self.url, error)}") from error
        if sent_to is not None:
            with self.elsewhere.fetch(sent_to, offset) as answer:
                yield answer

    def _sent_to(self, answer: httpx.Response) -> str | None:
        """Where the coordinator has sent to; whatever sends away without its name, or unasked, is not heeded."""
        heeded = answer.status_code == 307 and ELSEWHERE in answer.request.headers and identity_of(answer.headers) is not None
        return answer.headers.get("location") if heeded else None

    def upload_offset(self, assignment_id: str, digest: str) -> UploadOffset:
        return self._model(UploadOffset, "GET", f"/assignments/{assignment_id}/upload/{digest}")

    def upload(self, assignment_id: str, digest: str, path: Path, offset: int, size: int) -> UploadOffset:
        """Send `size` bytes of `path` from `offset` on; `bytes_sent` counts them."""

        def body() -> Iterator[bytes]:
            left = size
            while chunk := file.read(min(CHUNK, left)):
                yield chunk
                left -= len(chunk)
                self.bytes_sent += len(chunk)

        with path.open("rb") as file:
            file.seek(offset)
            return self._model(
                UploadOffset, "PUT", f"/assignments/{assignment_id}/upload/{digest}", params={"offset": offset},
                content=body(), headers={"Content-Length": str(size)},
            )  # fmt: skip

    def submit(self, assignment_id: str, submission: DeltaSubmission) -> DeltaReceipt:
        body = submission.model_dump(mode="json")
        return self._model(DeltaReceipt, "POST", f"/assignments/{assignment_id}/delta", json=body, timeout=120)

    def _model(self, kind: type[T], method: str, path: str, **arguments: Any) -> T:
        return self._read(kind, self._call(method, path, **arguments))

    def _read(self, kind: type[T], answer: httpx.Response) -> T:
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            raise something_else(self.url, answer.status_code, answer.headers) from error

    def _call(self, method: str, path: str, limit: int = MOST_JSON, digest: str | None = None, **arguments: Any) -> httpx.Response:
        """A good answer with its whole body, of which `digest` is known before."""
        headers = self.proof.headings() | arguments.pop("headers", {})
        try:
            with self._http.stream(method, path, headers=headers, **arguments) as answer:
                self._recognise(answer)
                content = self._content(answer, limit)
        except (httpx.HTTPError, BodyInvalid) as error:
            raise Unreachable(f"no coordinator answers at {self.url}: {why(self.url, error)}") from error
        if not answer.is_success:
            self._raise(answer, content)
        if digest is None:
            self.proof.check(answer, content)
        elif digest_of(content) != digest:
            raise something_else(self.url, answer.status_code, answer.headers)
        if self.coordinator is None:
            self.coordinator = identity_of(answer.headers)
        self.answered_at = time.time()
        self.takes_signatures = speaks(answer.headers, SIGNING)
        self.headings_come = VERSION in answer.headers
        headers = {name: value for name, value in answer.headers.items() if name not in ABOUT_THE_BYTES}
        return httpx.Response(answer.status_code, headers=headers, content=content)

    def _content(self, answer: httpx.Response, limit: int) -> bytes:
        """The whole body. Of an error that is not the coordinator's the head says enough, where the connection was closed on it."""
        try:
            return body_of(answer, limit)
        except (httpx.HTTPError, BodyInvalid):
            if answer.is_success or identity_of(answer.headers) is not None:
                raise
            return b""

    def _recognise(self, answer: httpx.Response) -> None:
        said = identity_of(answer.headers)
        if self.coordinator is not None and said is not None and said != self.coordinator:
            raise AnotherCoordinator(
                f"another coordinator answers at {self.url}: this agent is enrolled at {self.coordinator}, and that is {said}. "
                "Was it started with another home or database? It is asked again until the right one is back"
            )

    def _raise(self, answer: httpx.Response, content: bytes) -> None:
        status, headers = answer.status_code, answer.headers
        try:
            # A gateway's errors may have a code, or a message, too; a coordinator of a later version may say more than is known here.
            body = ErrorSaid.model_validate_json(content, extra="forbid" if identity_of(headers) is None else "ignore")
        except ValidationError:
            raise error_of_another(self.url, answer) from None
        if not self._is_ours(body, identity_of(headers)):
            raise error_of_another(self.url, answer)
        self.proof.check(answer, content)
        raise KINDS.get(body.code, CoordinatorSaid)(status, body.code, one_line(body.message), body.detail)

    def _is_ours(self, body: ErrorSaid, said: str | None) -> bool:
        """Whether an error is the coordinator's: a gateway may have JSON and keys of its own.

        What ends an agent must come from the very coordinator that it is enrolled at.
        """
        if said is not None:
            return True  # another coordinator's was recognised before
        if body.code in ENDS:
            return self.coordinator is None and body.detail is not None
        return self.coordinator is None or body.detail is not None

    def _no_assignment(self, answer: httpx.Response, error: ValidationError) -> AgentError:
        """What is wrong with an assignment that this agent cannot read; its lease can be given back if its id came through."""
        body = object_of(answer.content)
        if body is None or not {"assignment_id", "attempt", "manifest"} <= body.keys():
            return something_else(self.url, answer.status_code, answer.headers)
        first = error.errors()[0]
        what = f"{'.'.join(str(p) for p in first['loc'])}: {problem_in_words(first)}"
        try:
            # It becomes part of a URL: what is no id is not sent back.
            assignment_id, attempt = _ID.validate_python(body["assignment_id"]), _ATTEMPT.validate_python(body["attempt"])
        except ValidationError:
            assignment_id, attempt = "", 0
        speaks = one_line(answer.headers.get(VERSION, ""))[:20] or "an earlier one"
        return ManifestInvalid(
            f"the assignment cannot be read ({one_line(what)}); this agent speaks version {SPOKEN} of the protocol, the coordinator {speaks}",
            assignment_id,
            attempt,
        )
