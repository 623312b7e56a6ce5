"""One side of `benchmarks.idle_agents`: many agents on long polls in one process, each with a connection of its own.

    python -m benchmarks.crowd REQUEST.json     meant to be started by the benchmark

It speaks HTTP by hand: a client library's own work would take the processor from the coordinator that is measured.
"""

import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

import numpy
from pydantic import BaseModel

from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.versions import SPOKEN, VERSION
from fedcybgd.shared.contract.words import API

WAIT_S = 25
METRICS = {"steps": 1, "rows": 1, "tokens": 1, "loss_first": 1, "loss_last": 1, "seconds": 1, "tokens_per_s": 1}


class CrowdRequest(BaseModel):
    url: str
    keys: list[str]
    deltas: dict[str, str]
    """block → file that is sent as its delta"""
    arrivals: str
    """file to which a line is added for each assignment: its id, and when its agent had it"""
    train_s: float = 0
    """how long a visit takes: nothing is trained"""
    dying: list[int] = []
    """which of them are gone at their first visit, without a word"""


@dataclass
class Connection:
    """One agent's HTTP connection, kept open."""

    host: str
    port: int
    key: str
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None

    async def call(self, method: str, path: str, body: bytes) -> Any:
        """The JSON of the answer, None for 204; raises when it is an error."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        assert self.reader is not None
        head = f"{method} {API}{path} HTTP/1.1\r\nHost: {self.host}\r\nAuthorization: Bearer {self.key}\r\n"
        head += f"{VERSION}: {SPOKEN}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        await self.writer.drain()
        answer = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status = int(answer.split(" ", 2)[1])
        lengths = [line.partition(":")[2] for line in answer.splitlines() if line.lower().startswith("content-length:")]
        content = await self.reader.readexactly(int(lengths[0])) if lengths else b""
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {status} {content.decode()}")
        return json.loads(content) if content else None


async def live(
    connection: Connection, deltas: dict[str, bytes], arrivals: TextIO, pause: float, train_s: float = 0, dies: bool = False
) -> None:
    """An agent's loop: ask, note, send a delta that was made before, ask again."""
    await asyncio.sleep(pause)
    while True:
        assignment = await connection.call("POST", f"/assignments/claim?wait={WAIT_S}", b'{"runs": ["*"]}')
        if assignment is None:
            continue
        at = time.time()
        arrivals.write(json.dumps({"assignment_id": assignment["assignment_id"], "at": at}) + "\n")
        arrivals.flush()
        if dies:
            return
        await asyncio.sleep(train_s)
        delta = other(deltas[assignment["block"]])
        place = f"/assignments/{assignment['assignment_id']}"
        await connection.call("PUT", f"{place}/upload/{digest_of(delta)}", delta)
        submission = {"attempt": assignment["attempt"], "digest": digest_of(delta), "metrics": METRICS}
        await connection.call("POST", f"{place}/delta", json.dumps(submission).encode())


def other(delta: bytes) -> bytes:
    """Small random numbers in the place of those of a float32 delta: the same bytes are taken once in a run."""
    begin = 8 + int.from_bytes(delta[:8], "little")
    numbers = numpy.random.default_rng().normal(0, 1e-4, (len(delta) - begin) // 4)
    return delta[:begin] + numbers.astype("<f4").tobytes()


async def main(request: CrowdRequest) -> None:
    address = urlsplit(request.url)
    assert address.hostname
    assert address.port
    deltas = {block: Path(path).read_bytes() for block, path in request.deltas.items()}
    with Path(request.arrivals).open("a") as arrivals:
        # They begin at different moments, as agents do: else all of them would ask again in the same one.
        agents = [
            live(
                Connection(address.hostname, address.port, key),
                deltas,
                arrivals,
                random.uniform(0, WAIT_S),
                request.train_s,
                number in request.dying,
            )
            for number, key in enumerate(request.keys)
        ]
        await asyncio.gather(*agents)


if __name__ == "__main__":
    asyncio.run(main(CrowdRequest.model_validate_json(Path(sys.argv[1]).read_text())))
