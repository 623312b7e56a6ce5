"""One side of `benchmarks.idle_agents`: many agents on long polls in one process, each with a connection of its own.

    python -m benchmarks.crowd REQUEST.json     meant to be started by the benchmark

They do what real agents do: they sign each request, send its headings, and wait for as long as they are told. It speaks HTTP by hand: a
client library's own work would take the processor from the coordinator that is measured.
"""

import asyncio
import base64
import hashlib
import json
import random
import secrets
import sys
import time
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

import numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel

from fedcybgd.shared.contract.agents import ClaimRequest, DeclaredLimits
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.signatures import (
    CONTENT_DIGEST,
    SIGNATURE,
    SIGNATURE_INPUT,
    SignatureParameters,
    digest_heading,
    key_id,
    signed_text,
)
from fedcybgd.shared.contract.versions import SPOKEN, VERSION
from fedcybgd.shared.contract.words import API, DAEMON, WAIT
from fedcybgd.shared.host.rarely import Rarely

WAIT_S = 25.0
LIMITS = DeclaredLimits(memory_bytes=16 << 30, disk_bytes=100 << 30)
CLAIM = ClaimRequest(limits=LIMITS, runs=["*"]).model_dump_json().encode()
METRICS = {"steps": 1, "rows": 1, "tokens": 1, "loss_first": 1, "loss_last": 1, "seconds": 1, "tokens_per_s": 1}


SAYS, COMES_AGAIN = Rarely(), list[str]()


class CrowdRequest(BaseModel):
    url: str
    keys: list[str]
    """private keys, in base64"""
    deltas: dict[str, str]
    """block → file that is sent as its delta"""
    arrivals: str
    """file to which a line is added for each assignment: its id, and when its agent had it"""
    come_a_s: float = 100
    """so many come in a second, where there are more than can come within their wait"""
    train_s: float = 0
    """how long a visit takes: nothing is trained"""
    dying: list[int] = []
    """which of them are gone at their first visit, without a word"""


def daemon_of(key: str) -> str:
    """The word of the daemon of an agent with this private key: always the same, as of one that was there before."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


class NotNow(Exception):
    """An agent asks again after a while."""


class Connection:
    """One agent's HTTP connection, kept open."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self._host, self._port = host, port
        self._key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(key))
        self._key_id = key_id(base64.b64encode(self._key.public_key().public_bytes_raw()).decode())
        self.daemon = daemon_of(key)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.wait_s = WAIT_S
        """for how long the next claim is to wait"""

    async def call(self, method: str, path: str, body: bytes, streams: bool = False) -> Any:
        """The JSON of the answer, None for 204; raises when it is an error. `streams`: the body is not signed, its digest is in the path."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        head = f"{method} {API}{path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\n"
        head += f"Connection: keep-alive\r\nUser-Agent: python-httpx/0.28.1\r\n{VERSION}: {SPOKEN}\r\n{DAEMON}: {self.daemon}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{self._signed(method, API + path, b'' if streams else body)}\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
        status = int(answer.split(" ", 2)[1])
        headings = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in answer.splitlines()[1:])}
        content = await reader.readexactly(int(headings.get("content-length", "0")))
        if status in (401, 429, 503):
            raise NotNow(f"{method} {path}: {status} {content.decode()}")
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {status} {content.decode()}")
        self.wait_s = float(headings.get(WAIT.lower(), WAIT_S))
        return json.loads(content) if content else None

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    def _signed(self, method: str, target: str, body: bytes) -> str:
        path, _, query = target.partition("?")
        parameters = SignatureParameters(self._key_id, int(time.time()), secrets.token_urlsafe(16), bool(body))
        digest = digest_heading(body) if body else None
        signature = base64.b64encode(self._key.sign(signed_text(parameters, method, path, query, digest))).decode()
        said = f"{SIGNATURE_INPUT}: sig1={parameters.text()}\r\n{SIGNATURE}: sig1=:{signature}:\r\n"
        return said if digest is None else f"{CONTENT_DIGEST}: {digest}\r\n{said}"


async def live(
    connection: Connection, deltas: dict[str, bytes], arrivals: TextIO, pause: float, train_s: float = 0, dies: bool = False
) -> None:
    """An agent's loop: ask, note, send a delta that was made before, ask again."""
    await asyncio.sleep(pause)
    while True:
        wait = connection.wait_s * random.uniform(0.8, 1.0)
        try:
            assignment = await connection.call("POST", f"/assignments/claim?wait={wait}", CLAIM)
        except (OSError, EOFError, NotNow) as error:
            again(str(error))
            connection.close()
            await asyncio.sleep(random.uniform(1, 10))
            continue
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
        await connection.call("PUT", f"{place}/upload/{digest_of(delta)}", delta, streams=True)
        submission = {"attempt": assignment["attempt"], "digest": digest_of(delta), "metrics": METRICS}
        await connection.call("POST", f"{place}/delta", json.dumps(submission).encode())


def again(why: str) -> None:
    """Say now and then why agents come again."""
    COMES_AGAIN.append(why)
    if SAYS.is_due():
        print(f"agents come again, {len(COMES_AGAIN)} times so far; the last: {why}", file=sys.stderr)


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
                random.uniform(0, max(WAIT_S, len(request.keys) / request.come_a_s)),
                request.train_s,
                number in request.dying,
            )
            for number, key in enumerate(request.keys)
        ]
        await asyncio.gather(*agents)


if __name__ == "__main__":
    asyncio.run(main(CrowdRequest.model_validate_json(Path(sys.argv[1]).read_text())))
