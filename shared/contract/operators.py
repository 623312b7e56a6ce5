"""What operators send, and the answers that are no view of anything."""

from datetime import datetime

from pydantic import BaseModel, Field

from fedcybgd.shared.contract.words import Id, Message, Name


class TokenRequest(Message):
    expires_in_s: float = Field(3600, gt=0, le=31 * 86_400, description="seconds until the token expires unused")


class TokenAnswer(BaseModel):
    token: str = Field(description="shown this once")
    expires_at: datetime


class ModelRequest(Message):
    name: Name
    source: str = Field(
        min_length=1,
        max_length=4096,
        pattern=r"^[^\x00]*$",
        description="a directory on the coordinator's machine, or a hub id (owner/name[@revision])",
    )


class HeldOutAnswer(BaseModel):
    digest: str
    size: int


class StartRequest(Message):
    anyway: bool = Field(False, description="count all agents in from the start, whether they are there or not")


class ExportRequested(BaseModel):
    export_id: Id
