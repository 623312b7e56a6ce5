"""What a program learns of a coordinator that it has started: `fedcoord serve --ready-file`."""

from pydantic import BaseModel, Field

from fedcybgd.shared.contract.words import ErrorBody


class Ready(BaseModel):
    """It answers."""

    url: str
    pid: int
    version: str
    operator_key: str | None = Field(description="only where it was made at this start; it cannot be read again later")


class StartReport(BaseModel):
    """One of the two."""

    ready: Ready | None = None
    failed: ErrorBody | None = Field(None, description="why it does not start")
