"""Follows the events of a coordinator: one stream after another, each from where the last one ended."""

import re
import time
from collections.abc import Iterator

import httpx
from pydantic import ValidationError

from fedcybgd.client.connection import Connection
from fedcybgd.client.errors import CoordinatorAway
from fedcybgd.shared.contract.run_views import EventEntry
from fedcybgd.shared.host.bodies import BodyInvalid, plain_chunks

LONGEST_LINE = 1 << 20
PAUSE_S = 1.0


def follow(connection: Connection, after: int | None, timeout_s: float) -> Iterator[EventEntry]:
    """See `Client.events`."""
    until = time.monotonic() + timeout_s
    away_since: float | None = None
    while time.monotonic() < until:
        try:
            for event in _stream(connection, after, until):
                away_since = None
                if isinstance(event, int):
                    after = event
                elif event is not None:
                    yield event
        except (CoordinatorAway, httpx.HTTPError) as error:
            away_since = time.monotonic() if away_since is None else away_since
            if time.monotonic() - away_since > connection.patience_s:
                raise CoordinatorAway(f"{connection.url} tells no events ({error or type(error).__name__})") from error
            time.sleep(PAUSE_S)


def _stream(connection: Connection, after: int | None, until: float) -> Iterator[EventEntry | int | None]:
    """Until it ends; before each event its id, or the one after which is told; None for what says only that somebody is there."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    with connection.stream("/events/stream", headers) as answer:
        if not answer.is_success:
            connection.check(connection.whole(answer))
        for line in _lines(answer):
            if time.monotonic() > until:
                return
            if line.startswith("data:"):
                try:
                    yield EventEntry.model_validate_json(line[5:])
                except ValidationError as error:
                    raise CoordinatorAway("what comes is no event of a coordinator") from error
            else:
                yield int(line[3:]) if re.fullmatch(r"id: ?\d{1,19}", line) else None


def _lines(answer: httpx.Response) -> Iterator[str]:
    """As they come; it ends with one that is too long to be of a coordinator, or in a coding that nobody asked for."""
    left = b""
    try:
        for chunk in plain_chunks(answer.iter_raw(), answer.headers.get("content-encoding", "")):
            *lines, left = (left + chunk).split(b"\n")
            yield from (line.decode("utf-8", "replace").rstrip("\r") for line in lines)
            if len(left) > LONGEST_LINE:
                return
    except BodyInvalid:
        return
