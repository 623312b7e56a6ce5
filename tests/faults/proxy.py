"""A TCP proxy between one agent and its coordinator, which can be told to be as bad as networks are.

It knows where a request ends, so that it can send one twice, or swallow an answer after the coordinator has committed. Each request
goes over a connection of its own.
"""

import asyncio
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field

FOREIGN = {
    200: b"<html><body>Welcome! Please log in.</body></html>", 302: b"", 403: b"<h1>Forbidden</h1>", 404: b"<h1>Not Found</h1>",
    413: b"<h1>Request Entity Too Large</h1>", 502: b"<h1>Bad Gateway</h1>",
    500: b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>",
    503: b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
}  # fmt: skip
LENGTH, CHUNKED = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE), re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
KINDS = ("cut_up", "cut_down", "delay", "throttle", "black_hole", "reset", "duplicate", "drop_answer", "foreign")


@dataclass
class Rule:
    """What is done to the requests of some seconds, or to so many of them, whichever ends first."""

    kind: str
    seconds: float = 5.0
    amount: int = 0
    """bytes after which is cut, milliseconds of delay, bytes a second, or the foreign status"""
    requests: int = 1 << 30
    path: str = ""
    """a regular expression for "METHOD path" """
    begun: float = field(default_factory=time.monotonic)
    met: int = 0

    def over(self) -> bool:
        return time.monotonic() > self.begun + self.seconds or self.met >= self.requests


class Cut(Exception):
    """The connection ends here, without a word."""


class Proxy:
    def __init__(self, port: int) -> None:
        self._target = port
        self._rules: list[Rule] = []
        self.asked_at = self.answered_at = 0.0
        """when a request reached the coordinator last, and when an answer of it came, by `time.monotonic`"""
        self.passed: list[tuple[str, int, int]] = []
        """of each request METHOD and path, and how many bytes of its body and of its answer's went on"""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="proxy", daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def set(self, rule: Rule) -> Rule:
        self._rules = [r for r in self._rules if not r.over()] + [rule]
        return rule

    def clear(self) -> None:
        self._rules = []

    def close(self) -> None:
        """Nothing of it is left then: no handler, no connection, no thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._handle, "127.0.0.1", 0, limit=1 << 20))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(self._end_all())
        self._loop.close()

    @staticmethod
    async def _end_all() -> None:
        """End the handlers where they are: one that is thrown away with its loop would be closed by nobody."""
        tasks = asyncio.all_tasks()
        while len(tasks) > 1:  # this is one of them; a connection that was just taken becomes another
            for task in tasks - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)
            tasks = asyncio.all_tasks()
        await asyncio.sleep(0)  # for the connections that they closed

    def _rule(self, line: bytes) -> Rule | None:
        text = what(line)
        for rule in self._rules:
            if not rule.over() and re.search(rule.path, text):
                rule.met += 1
                return rule
        return None

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            rule = self._rule(head.split(b"\r\n", 1)[0])
            body = await self._body(reader, head)
            await self._answer(rule or Rule("none"), self._request(head, body), reader, writer)
        except (Cut, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    @staticmethod
    async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
        if CHUNKED.search(head):
            body = b""
            while not body.endswith(b"\r\n0\r\n\r\n") and body != b"0\r\n\r\n":
                body += await reader.readuntil(b"\r\n")
            return body
        found = LENGTH.search(head)
        return await reader.readexactly(int(found[1])) if found else b""

    @staticmethod
    def _request(head: bytes, body: bytes) -> bytes:
        return re.sub(rb"\r\nconnection: [^\r]*", b"", head[:-4], flags=re.IGNORECASE) + b"\r\nConnection: close\r\n\r\n" + body

    async def _answer(self, rule: Rule, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        match rule.kind:
            case "black_hole":
                await asyncio.sleep(max(0.0, rule.begun + rule.seconds - time.monotonic()))
                raise Cut
            case "reset":
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
                raise Cut
            case "foreign":
                page = FOREIGN[rule.amount]
                heading = f"HTTP/1.1 {rule.amount} No\r\nContent-Type: text/html\r\nLocation: /login\r\nContent-Length: {len(page)}\r\n"
                writer.write(heading.encode() + b"Connection: close\r\n\r\n" + page)
                await writer.drain()
                return
            case "cut_up":
                await self._forwarded(request[: max(1, min(rule.amount, len(request) - 1))], reader, whole=False)
                raise Cut
            case "delay":
                await asyncio.sleep(rule.amount / 1000)
            case "duplicate":
                await self._forwarded(request, reader)
        answer = await self._forwarded(request, reader)
        if rule.kind == "drop_answer":
            raise Cut
        if rule.kind == "throttle":
            for start in range(0, len(answer), 1024):
                writer.write(answer[start : start + 1024])
                await writer.drain()
                await asyncio.sleep(0 if rule.over() else 1024 / rule.amount)
            return
        passed = answer[: rule.amount] if rule.kind == "cut_down" else answer
        self.passed[-1] = (*self.passed[-1][:2], body_of(passed))
        writer.write(passed)
        await writer.drain()

    async def _forwarded(self, request: bytes, reader: asyncio.StreamReader, whole: bool = True) -> bytes:
        """What the coordinator answers, all of it. An agent that goes away meanwhile takes its request with it."""
        self.passed.append((what(request), body_of(request), 0))
        theirs, ours = await asyncio.open_connection("127.0.0.1", self._target)
        answer, gone = asyncio.ensure_future(theirs.read(-1)), asyncio.ensure_future(reader.read(1))
        try:
            ours.write(request)
            await ours.drain()
            self.asked_at = time.monotonic()
            if not whole:
                return b""
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise Cut
            if not answer.result():
                raise Cut
            self.answered_at = time.monotonic()
            return answer.result()
        finally:
            gone.cancel()
            answer.cancel()
            ours.close()


def what(head: bytes) -> str:
    return " ".join(head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")[:2])


def body_of(message: bytes) -> int:
    """Bytes after the head."""
    return len(message.partition(b"\r\n\r\n")[2])
