"""What operators send and get."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from fedcybgd.shared.contract.words import ErrorBody, Id, Message, Name

Responses = dict[int | str, dict[str, Any]]


def errors(*statuses: int) -> Responses:
    """OpenAPI entries of the errors that a route can answer with."""
    titles = {
        400: "Malformed request",
        401: "No key, or a wrong one",
        403: "The key may not do this",
        404: "Not there",
        409: "Not possible in this state",
        413: "Too many bytes",
        422: "The content is wrong",
        503: "Not now: ask again",
        507: "The coordinator's disk is full",
    }
    return {status: {"model": ErrorBody, "description": titles[status]} for status in statuses}


class Health(BaseModel):
    status: str
    version: str


class TokenRequest(Message):
    expires_in_s: float = Field(3600, gt=0, le=31 * 86_400, description="seconds until the token expires unused")


class TokenAnswer(BaseModel):
    token: str = Field(description="shown this once")
    expires_at: datetime


class NewKey(BaseModel):
    key: str = Field(description="shown this once; the old one is void")


class ModelRequest(Message):
    name: Name
    source: str = Field(
        min_length=1,
        max_length=4096,
        pattern=r"^[^\x00]*$",
        description="a directory on the coordinator's machine, or a hub id (owner/name[@revision])",
    )


class ModelBlockView(BaseModel):
    name: str
    kind: str
    digest: str
    size: int
    num_parameters: int


class ModelView(BaseModel):
    id: str
    name: str
    source: str
    state: str = Field(description="adding, ready or failed")
    reason: str | None
    num_parameters: int
    blocks: list[ModelBlockView]
    left_out: list[str] = Field(description="tensors of the checkpoint that the model does without")
    created_at: datetime


class HeldOutAnswer(BaseModel):
    digest: str
    size: int


class StartRequest(Message):
    anyway: bool = Field(False, description="count all agents in from the start, whether they are there or not")


class ExportRequested(BaseModel):
    export_id: Id


class ExposureView(BaseModel):
    agent: str
    run_id: str
    block: str
    version: int
    codec: str
    first_at: datetime
