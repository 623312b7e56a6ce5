"""What an answer says of who gave it, and its body."""

import json
import re
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fedcybgd.shared.contract import versions
from fedcybgd.shared.contract.versions import VERSION, Version
from fedcybgd.shared.contract.words import COORDINATOR, MAX_WAIT_S, WAIT, Id
from fedcybgd.shared.host.bodies import whole

WITHIN_S = 600.0
"""An answer that is not there by then drips."""
_ID: TypeAdapter[str] = TypeAdapter(Id)


class ErrorSaid(BaseModel):
    model_config = ConfigDict(strict=True)

    code: str = Field(pattern=r"^[a-z][a-z0-9_]{0,59}$")
    message: str
    detail: dict[str, Any] | None = None


def body_of(answer: httpx.Response, limit: int) -> bytes:
    return whole(answer.iter_raw(), answer.headers.get("content-encoding", ""), limit, WITHIN_S)


def identity_of(headers: httpx.Headers) -> str | None:
    said = headers.get(COORDINATOR)
    try:
        return _ID.validate_python(said) if said else None
    except ValidationError:
        return None


def speaks(headers: httpx.Headers, least: Version) -> bool:
    try:
        return versions.read(headers.get(VERSION)) >= least
    except ValueError:
        return False


def wait_said(headers: httpx.Headers) -> float | None:
    """For how long the next claim is to wait, where that is said and can be done."""
    text = headers.get(WAIT, "")
    return min(float(text), MAX_WAIT_S) if re.fullmatch(r"[0-9]{1,6}", text) else None


def object_of(content: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
