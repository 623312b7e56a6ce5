"""What an answer says of who gave it, and its body."""

import json
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fedcybgd.agent.errors import LoginPage, NotTheCoordinator, ProxyBodyLimit
from fedcybgd.shared.contract import versions
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.contract.versions import SPOKEN, VERSION, Version
from fedcybgd.shared.contract.words import COORDINATOR, MAX_WAIT_S, WAIT, Id
from fedcybgd.shared.host.bodies import whole

WITHIN_S = 600.0
"""An answer that is not there by then drips."""
LOGIN = "a page to log in, of a network or a VPN"
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


def error_of_another(url: str, answer: httpx.Response) -> NotTheCoordinator:
    """What an answer is that is an error, and not the coordinator's."""
    size = int(answer.request.headers.get("content-length", 0))
    if answer.status_code != httpx.codes.REQUEST_ENTITY_TOO_LARGE or not size:
        return something_else(url, answer.status_code, answer.headers)
    return ProxyBodyLimit(
        f"something between here and {url} answered 413 to a body of {size} bytes: a limit of a proxy "
        "(client_max_body_size in nginx); its operator has to raise it",
        size,
    )


def something_else(url: str, status: int, headers: httpx.Headers) -> NotTheCoordinator:
    """What an answer is that is not the coordinator's."""
    target = one_line(headers.get("location", "").split("?")[0])[:200]
    leads = f" It points to {target}, which is not followed; if that is the coordinator's URL, give this one." if target else ""
    speaks = one_line(headers.get(VERSION, ""))[:20]
    other = f" It speaks version {speaks} of the protocol, this agent {SPOKEN}." if speaks not in ("", str(SPOKEN)) else ""
    said = f"{url} answered {status}: is it a coordinator?"
    if not other and _asks_to_log_in(url, status, headers):
        page = f" Another program's page, if the port is wrong; else {LOGIN}" if 200 <= status < 300 else f" This looks like {LOGIN}"
        login = f"{page}: log in with a browser on this machine, then try again."
        return LoginPage(f"{said}{login}{leads}", status)
    return NotTheCoordinator(f"{said}{leads}{other}", status, _retry_after_s(headers) if status in (429, 503) else 0.0)


def _retry_after_s(headers: httpx.Headers) -> float:
    """Seconds, also where a time is said; 0 where neither is."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,6}", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _asks_to_log_in(url: str, status: int, headers: httpx.Headers) -> bool:
    """Whether what came in the coordinator's place looks like a page on which a person logs in: it says so, is a page that is no error,
    or sends to another host. A gateway whose backend is away has pages, too, but with an error's status.
    """
    if status == httpx.codes.NETWORK_AUTHENTICATION_REQUIRED:
        return True
    if 300 <= status < 400:
        try:
            sent_to = urlsplit(headers.get("location", "")).hostname
        except ValueError:
            return False
        return sent_to is not None and sent_to != urlsplit(url).hostname
    return 200 <= status < 300 and "html" in headers.get("content-type", "")
