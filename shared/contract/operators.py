"""What operators send, and the answers that are no view of anything."""

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.words import Id, Message, Name

KeyHolds = Annotated[
    float | None,
    Field(gt=0, le=3650 * 86_400, description="seconds until the key ends; default: FEDCOORD_OPERATOR_KEYS_HOLD_S, or never"),
]


class TokenRequest(Message):
    expires_in_s: float = Field(3600, gt=0, le=31 * 86_400, description="seconds until the token expires unused")
    uses: int = Field(1, ge=1, le=1000, description="how many agents may enrol with it")


class AgentKeyRequest(Message):
    expires_in_s: float = Field(3600, gt=0, le=31 * 86_400, description="seconds until the token expires unused")


class AgentNameRequest(Message):
    name: Name = Field(description="what it is called from now on")


class TokenAnswer(BaseModel):
    token: str = Field(description="shown this once")
    token_id: str
    expires_at: datetime
    coordinator_key: str | None = Field(
        None,
        description="fingerprint of the coordinator's signing key, to be handed out with the token: agents can hold all answers against it",
    )


class TokenView(BaseModel):
    """A token, without its secret."""

    id: str
    created_at: datetime
    expires_at: datetime
    uses: int = Field(description="how many agents may enrol with it")
    used: int
    used_at: datetime | None = Field(description="the last time")
    withdrawn_at: datetime | None
    agent: str | None = Field(description="for whom alone it is: an agent that gets another key")


class ModelRequest(Message):
    name: Name
    source: str = Field(
        min_length=1,
        max_length=4096,
        pattern=r"^[^\x00]*$",
        description="a directory on the coordinator's machine, or a hub id (owner/name[@revision])",
    )


def name_of(source: str) -> str:
    """What a model is called if nobody says: the last part of where it comes from."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", source.rstrip("/").rsplit("/", 1)[-1].partition("@")[0])


class HeldOutAnswer(BaseModel):
    digest: str
    size: int


class HeldOutView(BaseModel):
    """A held-out file that was uploaded."""

    digest: str
    name: str = Field(description="that of its first upload")
    size: int
    created_at: datetime
    number_of_runs: int = Field(description="that are scored on it, or were: as long as there are some it cannot be deleted")
    runs: list[str] = Field(description="names of the newest of them")


class StartRequest(Message):
    anyway: bool = Field(False, description="count all agents in from the start, whether they are there or not")


class RollbackRequest(Message):
    after_rounds: int | None = Field(
        None, ge=0, le=2**31 - 1, description="the model goes back to what it was after so many rounds; 0: as it was prepared"
    )
    best: bool = Field(False, description="instead: to what it was when it scored best on the held-out rows")

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if (self.after_rounds is None) != self.best:
            raise ValueError("give `after_rounds`, or `best: true`: one of the two says how far back")
        return self


class AgentRequest(Message):
    agent: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$", description="whose deltas are taken out")


class ExportRequested(BaseModel):
    export_id: Id


class OperatorRequest(Message):
    name: Name = Field(description="not `me`, which is whoever asks")
    role: Literal["viewer", "operator", "owner"]
    expires_in_s: KeyHolds = None

    @field_validator("name")
    @classmethod
    def _is_no_word(cls, name: str) -> str:
        if name == "me":
            raise ValueError("nobody can be called `me`, which is whoever asks")
        return name


class OperatorKeyRequest(Message):
    expires_in_s: KeyHolds = None


class OperatorView(BaseModel):
    name: str
    role: str = Field(description="viewer, operator or owner")
    created_at: datetime
    rotated_at: datetime | None = Field(description="when the key was last replaced")
    expires_at: datetime | None = Field(description="when the key ends by itself")
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="to a minute")


class OperatorKeyAnswer(BaseModel):
    name: str
    role: str
    key: str = Field(description="shown this once; the coordinator keeps a hash of it only")
    expires_at: datetime | None


class AuditEntry(BaseModel):
    """One act, chained to the one before: whoever changes, removes or adds one afterwards would have to change all that follow."""

    model_config = ConfigDict(from_attributes=True)

    seq: int
    at: datetime
    caller: str = Field(description="operator, agent, nobody (no key), machine (a command on the coordinator's own machine)")
    name: str
    role: str = Field(description="of an operator, at that time")
    address: str
    act: str = Field(description="method and path of a route, or the name of a command")
    subject: str = Field(description="what it was done to")
    outcome: str = Field(description="done, or the code of the refusal")
    previous: str = Field(description="hash of the entry before; 64 zeros for the first")
    hash: str = Field(description="sha256 of all other fields as JSON: names in order, no spaces, the time in UTC to the microsecond")

    def own_hash(self) -> str:
        fields = self.model_dump(exclude={"hash", "at"}) | {"at": self.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
        return digest_of(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())


FIRST_HASH = "0" * 64


class AuditBroken(FedError):
    code = "audit_broken"


def check_audit(entries: Iterable[AuditEntry]) -> tuple[int, str]:
    """How many entries there are, and the hash of the last. Raises `AuditBroken` at the first that is not as it was written.

    Entries that are missing at the end are not noticed by this alone: keep the last hash elsewhere.
    """
    seq, last = 0, FIRST_HASH
    for entry in entries:
        if entry.seq != seq + 1 or entry.previous != last:
            raise AuditBroken(f"the audit log is broken: entry {entry.seq} does not follow entry {seq}", seq=entry.seq)
        if entry.own_hash() != entry.hash:
            raise AuditBroken(f"the audit log is broken: entry {entry.seq} was changed", seq=entry.seq)
        seq, last = entry.seq, entry.hash
    return seq, last
