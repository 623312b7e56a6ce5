"""What is written beside blobs, by which another machine finds out whether it sees the same place."""

import os
import secrets

from fedcybgd.coordinator.storage.bucket import reach
from fedcybgd.coordinator.storage.place import Place

NAME = "place.id"


def leave(place: Place) -> str:
    """The mark of a place that is there; it is made once."""
    mark = secrets.token_hex(16)
    if place.url is not None:
        reach(place.url).create(NAME, mark.encode())
        return seen(place) or mark
    part = place.folder / f"{NAME}.{secrets.token_hex(4)}"
    part.write_text(mark)
    try:
        os.link(part, place.folder / NAME)
    except FileExistsError:
        pass
    finally:
        part.unlink()
    return seen(place) or mark


def seen(place: Place) -> str | None:
    """The mark as it is seen from here; None: there is none, or not even the place. Nothing is made."""
    if place.url is not None:
        found = reach(place.url).read(NAME)
        return None if found is None else found.decode("utf-8", "replace")
    try:
        return (place.folder / NAME).read_text()
    except OSError:
        return None
