"""What has left this machine, for its owner: bytes and deltas, to which coordinator, for which run. Kept in a file of the home."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

MOST_RUNS = 200
"""Runs that are told one by one, the latest ones; the older ones are one line together"""
EARLIER = "earlier runs"


class Sent(BaseModel):
    """Of one run."""

    coordinator: str
    run: str
    deltas: int = 0
    """that the coordinator has received"""
    bytes_sent: int = 0
    """of deltas, those too that were sent in vain"""
    bytes_fetched: int = 0
    """of shards, patches and files"""
    bytes_of_site: int = 0
    """of these, what the site cache has sent in the coordinator's place"""
    first_at: str
    last_at: str


def read(path: Path) -> list[Sent]:
    """The newest last. What cannot be read any more is no reason to stop: then it begins anew."""
    try:
        return [Sent.model_validate(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, ValidationError):
        return []


def add(path: Path, coordinator: str, run: str, deltas: int, sent: int, fetched: int, of_site: int = 0) -> None:
    """Add what one visit came to. Raises `OSError`."""
    if not (deltas or sent or fetched):
        return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    found = read(path)
    mine = next((one for one in found if (one.coordinator, one.run) == (coordinator, run)), None)
    others = [one for one in found if one is not mine]
    mine = mine or Sent(coordinator=coordinator, run=run, first_at=now, last_at=now)
    more = {"deltas": deltas, "bytes_sent": sent, "bytes_fetched": fetched, "bytes_of_site": of_site}
    others.append(mine.model_copy(update={"last_at": now, **{name: getattr(mine, name) + value for name, value in more.items()}}))
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps([one.model_dump() for one in _bounded(others)]), encoding="utf-8")
    aside.replace(path)


def _bounded(all_of_it: list[Sent]) -> list[Sent]:
    if len(all_of_it) <= MOST_RUNS:
        return all_of_it
    old, kept = all_of_it[: len(all_of_it) - MOST_RUNS + 1], all_of_it[len(all_of_it) - MOST_RUNS + 1 :]
    sums: dict[str, Any] = {
        name: sum(getattr(one, name) for one in old) for name in ("deltas", "bytes_sent", "bytes_fetched", "bytes_of_site")
    }
    where = {one.coordinator for one in old}
    coordinator = where.pop() if len(where) == 1 else "several"
    together = Sent(
        coordinator=coordinator, run=EARLIER, first_at=min(o.first_at for o in old), last_at=max(o.last_at for o in old), **sums
    )
    return [together, *kept]
