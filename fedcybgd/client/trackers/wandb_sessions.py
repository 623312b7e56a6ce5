"""Which points Weights & Biases has of a run: a file of ours says what it was told, and its own files how much of that it has kept.

It keeps what it is told a while later, by a process of its own: whoever is killed does not know how far that has come.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fedcybgd.client.trackers.base import Key, package

EXTRA = "wandb"
HEAD, BLOCK, OF_RECORD = 7, 32_768, 7
"""Bytes before the first record of a .wandb file, of its blocks, and before each part of a record: the log format of LevelDB"""
WHOLE, LAST = 1, 4
PAUSE_S = 0.05


def told_so_far(told: IO[str], folder: Path, run_id: str) -> tuple[list[Key], int]:
    """Points in the order they were told in, and how many of them are kept; where a session's files are gone all are, for it was synced."""
    keys: list[Key] = []
    session, begun = "", 0
    told.seek(0)
    for line in told:
        try:
            said = json.loads(line)
        except ValueError:  # the last one of who was killed, or had no room
            continue
        if isinstance(said, list):
            keys.append(Key(*said))
        else:
            session, begun = said["session"], said["after"]
            del keys[begun:]
    file = folder / session / f"run-{run_id}.wandb"
    return keys, min(len(keys), begun + kept(file)) if session and file.is_file() else len(keys)


def wait_for_a_name(folder: Path, run_id: str) -> None:
    """W&B calls a session by the second it begins in, and writes over one of the same second."""
    while any(folder.glob(f"*run-{time.strftime('%Y%m%d_%H%M%S')}-{run_id}")):
        time.sleep(PAUSE_S)


def begin(told: IO[str], session: str, after: int) -> None:
    """From here on points are of a new session; of those before, only so many count."""
    told.write(f"\n{json.dumps({'session': session, 'after': after})}\n")
    told.flush()


def kept(file: Path) -> int:
    """How many points a .wandb file has. Raises `PackageMissing`."""
    record = package("wandb.proto.wandb_internal_pb2", EXTRA).Record
    return sum(record.FromString(data).WhichOneof("record_type") == "history" for data in _records(file.read_bytes()))


def _records(data: bytes) -> Iterator[Any]:
    """A record may go on in the next block; one that is torn, and what comes after it, is not there."""
    at, record = HEAD, b""
    while at + OF_RECORD <= len(data):
        if (left := BLOCK - at % BLOCK) < OF_RECORD:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        at += OF_RECORD + size
        if at > len(data):
            return
        record += data[at - size : at]
        if kind in (WHOLE, LAST):
            yield record
            record = b""
