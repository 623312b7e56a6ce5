"""The ways in which a blob that is lost can be made again, to the byte."""

from typing import Literal

from pydantic import BaseModel

from fedcybgd.coordinator.domain.jobs.payloads import Change
from fedcybgd.shared.contract.codec import EXACT
from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.contract.words import Task

LOST = frozenset({"blob_missing", "blob_damaged"})


class Remedy(BaseModel):
    """`encode`: encode (and pack) the exact shard `source`. `unpack`: unpack `source`. `delta`: add the delta `change` to `source`.
    `difference`: what leads from `source` to `change`. `versions`: make versions `again`, one after another from `source`.
    """

    kind: Literal["encode", "unpack", "delta", "difference", "versions"]
    source: str
    codec: str = EXACT
    change: str = ""
    weight: float = 1.0
    again: list[Change] = []


class MendPayload(BaseModel):
    digest: str
    ways: list[Remedy]
    config: FileRef | None = None
    task: Task | None = None


class MendResult(BaseModel):
    """The blob is there again: that is all."""
