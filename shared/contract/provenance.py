"""The provenance file: from which model, by which deltas and over which versions an export came to be; signed by its coordinator.

docs/provenance.md says what is in it, for whoever writes a checker of his own. It has no number but whole ones: canonical JSON of it is
the same wherever it is made.
"""

import base64
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, StringConstraints, model_serializer

from fedcybgd.shared.contract.digests import Digest, digest_of
from fedcybgd.shared.contract.manifests import FileRef
from fedcybgd.shared.contract.words import MOST_LABELS, JsonObject

FORMAT: Literal["fedcybgd-provenance-1"] = "fedcybgd-provenance-1"
WITH_AVERAGES: Literal["fedcybgd-provenance-2"] = "fedcybgd-provenance-2"
WITH_ADAPTERS: Literal["fedcybgd-provenance-3"] = "fedcybgd-provenance-3"
WITH_CORRECTIONS: Literal["fedcybgd-provenance-4"] = "fedcybgd-provenance-4"
WITH_CALIBRATION: Literal["fedcybgd-provenance-5"] = "fedcybgd-provenance-5"
ProvenanceFormat = Literal[
    "fedcybgd-provenance-1", "fedcybgd-provenance-2", "fedcybgd-provenance-3", "fedcybgd-provenance-4", "fedcybgd-provenance-5"
]
FILE = "provenance.json"
CARD = "fedcybgd.json"
"""Says which run made a directory; transformers does not look at it"""
"""Its name beside an export"""
MOST_SHIFTS = 100_000
"""As many as a task may have labels"""
Weight = Annotated[str, StringConstraints(max_length=40)]


class ProvenanceSection(BaseModel):
    """What is signed has nothing beside it that nobody has read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ProvenanceTerm(ProvenanceSection):
    delta: Digest
    weight: str = Field(max_length=40, description="a decimal number; its nearest double is meant")
    agent: str = Field(max_length=200, description="its name, or a pseudonym that is the same in the whole file")
    visit: str = Field(max_length=100, description="id of the assignment: the same delta may have been given twice")
    rows: list[Weight] = Field(
        [],
        max_length=MOST_LABELS,
        description="of a head: weights of the rows of its labels, decimal numbers; not there where all are `weight`",
    )

    scale: str | None = Field(
        None,
        max_length=40,
        description="the delta has corrections of the block, and how often counts the product of two factors, a decimal number; "
        "not there where it has the block itself",
    )

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As files were before there were rows and corrections, so that an earlier checker reads those that have none."""
        found: dict[str, Any] = plain(self)
        return {name: value for name, value in found.items() if name not in ("rows", "scale") or value}


class ProvenanceAverageTerm(ProvenanceSection):
    version: int = Field(ge=0, description="of the same block")
    rounds: int = Field(ge=1, description="its weight: how many of the last rounds ended with it")


class ProvenanceOuter(ProvenanceSection):
    learning_rate: str = Field(max_length=40, description="a decimal number, as a weight is")
    momentum: str = Field(max_length=40)
    nesterov: bool
    velocity: Digest = Field(description="of what it carries on from this version")


class ProvenanceAdapters(ProvenanceSection):
    version: int = Field(ge=0, description="of the block `adapters`, which the deltas were trained from")
    scale: str = Field(max_length=40, description="how often counts what adapters add: a decimal number, as a weight is")


class ProvenanceCalibration(ProvenanceSection):
    weight: str = Field(description="name of the matrix that is multiplied")
    bias: str | None = Field(description="name of the bias beside it, multiplied and shifted; null: there is none")
    scale: str = Field(max_length=40, description="a decimal number, as a weight is")
    shift: list[Weight] = Field(max_length=MOST_SHIFTS, description="for each number of the bias; none where there is no bias")


class ProvenanceVersion(ProvenanceSection):
    block: str
    version: int = Field(ge=0)
    origin: str = Field(description="base, applied, restored, averaged, best, calibrated or found")
    digest: Digest = Field(description="of its safetensors file")
    size: int
    parent: int | None = Field(description="the version that it was made of, or whose bytes it has")
    round: int | None
    aggregate: str | None = Field(description="the rule by which the deltas were put together")
    terms: list[ProvenanceTerm] = Field(description="in the order in which they were added")
    # Files of the first format are signed without the field, and have to stay as they were signed.
    average: list[ProvenanceAverageTerm] | None = Field(
        None,
        description="the versions that it is the mean of, or the one that it is again; not there for any other",
        exclude_if=lambda value: value is None,
    )
    outer: ProvenanceOuter | None = Field(
        None,
        description="the outer optimizer that made a step of them; not there where there is none",
        exclude_if=lambda value: value is None,
    )
    beside: ProvenanceAdapters | None = Field(
        None,
        description="the deltas are of these adapters, and what their mean leaves out was added; not there for any other",
        exclude_if=lambda value: value is None,
    )

    calibration: ProvenanceCalibration | None = Field(
        None,
        description="what was done to the head that is the parent; not there for any other",
        exclude_if=lambda value: value is None,
    )


class ProvenanceBlock(ProvenanceSection):
    name: str
    digest: Digest


class ProvenanceModel(ProvenanceSection):
    name: str
    files: list[FileRef]
    blocks: list[ProvenanceBlock]


class ProvenanceRun(ProvenanceSection):
    id: str
    name: str
    run_file: str = Field(description="canonical JSON")
    rounds_done: int
    blocks: list[str] = Field(description="in the order of the model")


class ProvenanceExport(ProvenanceSection):
    after_rounds: int
    files: list[FileRef]
    versions: dict[str, int] = Field(description="block: version, of what the weights are joined from")


class Provenance(ProvenanceSection):
    format: ProvenanceFormat = Field(
        description="2: it has averages; 3: adapters were folded into blocks; 4: visits corrected blocks that they did not train; 5: a head was calibrated"
    )
    coordinator: str = Field(description="id of its database")
    made_at: str
    model: ProvenanceModel
    run: ProvenanceRun
    versions: list[ProvenanceVersion]
    present: dict[str, int] = Field(description="block: its version when this was made")
    export: ProvenanceExport | None
    key: str = Field(description="the coordinator's Ed25519 public key, base64 of 32 bytes")
    signature: str = Field(description="base64, of the canonical JSON of all but this field")

    def signed(self) -> bytes:
        """What the signature is of."""
        return canonical(self.model_dump(mode="json", exclude={"signature"}))


class SigningKeyView(BaseModel):
    """The public key that a coordinator signs with."""

    algorithm: Literal["ed25519"] = "ed25519"
    key: str = Field(description="base64 of 32 bytes")
    fingerprint: str = Field(description="sha256 of these bytes")


def canonical(value: JsonObject) -> bytes:
    """JSON with sorted names, nothing between its parts, in UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def text_of(model: BaseModel) -> str:
    """The canonical JSON of a model."""
    return canonical(model.model_dump(mode="json")).decode()


def fingerprint(key: str) -> str:
    return digest_of(base64.b64decode(key))
