"""Somebody on the network, without a key."""

import re
import socket
import threading
import time
from contextlib import suppress

import httpx
import psutil

from tests.attack.attack import attack, held
from tests.attack.scene import Scene
from tests.support.visits import Hand

MUCH = 400 << 20


def raw(scene: Scene, text: str, body: bytes = b"") -> tuple[bytes, int]:
    """What is answered, and how many bytes of a body were taken before the connection was closed."""
    host, port = scene.url.removeprefix("http://").split(":")
    heard, sent = b"", 0
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(text.encode())
        with suppress(OSError):
            while body and sent < MUCH:
                sock.sendall(body)
                sent += len(body)
        with suppress(OSError):
            while data := sock.recv(65536):
                heard += data
    return heard, sent


def health(scene: Scene) -> float:
    began = time.monotonic()
    assert httpx.get(f"{scene.url}/v1/health", timeout=20).status_code == 200
    return time.monotonic() - began


@attack("D1", "bodies without a key, of 400 MB, and without a length", quick=True)
def bodies(scene: Scene) -> str:
    slowest = most = 0.0
    for path in ("/v1/runs", "/v1/assignments/claim", "/v1/agents", "/admin", "/v1/none-such"):
        for how in (f"Content-Length: {MUCH}", "Transfer-Encoding: chunked"):
            chunk = b"x" * (1 << 20) if "Length" in how else b"100000\r\n" + b"[" * (1 << 20) + b"\r\n"
            heard, sent = raw(scene, f"POST {path} HTTP/1.1\r\nHost: x\r\n{how}\r\n\r\n", chunk)
            code = heard[9:12].decode()
            held(code in ("401", "413", "404", "") and sent < 64 << 20, f"{path} {how}: answered {code}, {sent >> 20} MB taken")
            slowest, most = max(slowest, health(scene)), max(most, sent)
    return held(slowest < 2, f"401 or 413 each time, {most / 1e6:.0f} MB at the most left the attacker's socket, health in {slowest:.2f} s")


@attack("D1-head", "heads of 128 MB, files in forms, JSON 200,000 deep", quick=True)
def heads(scene: Scene) -> str:
    heard, sent = raw(scene, "GET /v1/health HTTP/1.1\r\nHost: x\r\nA: ", b"x" * 65536)
    held(sent < 16 << 20 and not heard.startswith(b"HTTP/1.1 200"), f"{sent >> 20} MB of a head were taken: {heard[:40]!r}")
    form = httpx.post(f"{scene.url}/admin", files={"key": b"x" * 100_000}).status_code
    deep = scene.hand().http.post("/assignments/claim", content=b"[" * 200_000, headers={"Content-Type": "application/json"}).status_code
    return held((form, deep) == (415, 400), f"head ended after {sent >> 10} KiB, form with a file {form}, deep JSON {deep}")


@attack("D2", "60 connections that flood and 400 that say half a request")
def half_open(scene: Scene) -> str:
    host, port = scene.url.removeprefix("http://").split(":")
    crowd, over, flood = [], threading.Event(), {"Authorization": "Bearer fco_" + "x" * 43}
    for _ in range(400):
        crowd.append(socket.create_connection((host, int(port)), timeout=10))
        crowd[-1].sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")

    def hostile() -> None:
        with httpx.Client(base_url=scene.url, headers=flood, timeout=30, verify=False) as http:
            while not over.is_set():
                with suppress(httpx.HTTPError):
                    http.get("/v1/status")

    threads = [threading.Thread(target=hostile, daemon=True) for _ in range(60)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    took = sorted(health(scene) for _ in range(9))
    over.set()
    for thread in threads:
        thread.join(30)
    return held(took[4] <= 1, f"health answered within {took[4]:.2f} s (median), {took[-1]:.2f} s (slowest)")


@attack("D2-slow", "a head that comes a byte at a time")
def slow(scene: Scene) -> str:
    host, port = scene.url.removeprefix("http://").split(":")
    began = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=20) as sock, suppress(OSError):
        sock.sendall(b"GET / HTTP/1.1\r\nA: ")
        while time.monotonic() - began < 30:
            sock.sendall(b"x")
            time.sleep(0.2)
    return held(time.monotonic() - began < 20, f"closed after {time.monotonic() - began:.0f} s")


@attack("D3", "keys and logins are guessed as fast as the line allows")
def guessing(scene: Scene) -> str:
    seen: dict[int, int] = {}
    with httpx.Client(base_url=scene.url, verify=False, timeout=30) as http:
        for number in range(300):
            code = http.get("/v1/status", headers={"Authorization": f"Bearer fco_{number:043d}"}).status_code
            seen[code] = seen.get(code, 0) + 1
    good: Hand = scene.hand()
    mine = good.http.get("/agents/me").status_code
    return held(seen.get(429, 0) > 100 and mine == 200, f"answers {seen}; a good key from the same address: {mine}")


@attack("D3-pages", "scripts from elsewhere, frames, foreign forms, and what a login leaves behind", quick=True)
def pages(scene: Scene) -> str:
    for path in ("/admin", "/docs"):
        page = httpx.get(scene.url + path)
        policy = page.headers.get("content-security-policy", "")
        held("default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy, f"{path}: {policy}")
        held(not re.search(r"https?://|<script>|<style", page.text), f"{path} loads from elsewhere, or has a script in it")
    browser = httpx.Client(base_url=scene.url, verify=False)
    token = re.search(r'name="form" value="([^"]+)"', browser.get("/admin").text)
    entered = browser.post("/admin", data={"key": scene.coordinator.key, "form": token[1] if token else ""})
    cookie = dict(browser.cookies)
    foreign = httpx.post(f"{scene.url}/admin/logout", cookies=cookie).status_code
    form = re.search(r'name="form" value="([^"]+)"', browser.get("/admin").text)
    browser.post("/admin/logout", data={"form": form[1] if form else ""})
    after = httpx.get(f"{scene.url}/admin/live", cookies=cookie).status_code
    flags = entered.headers.get("set-cookie", "").lower()
    holds = foreign == 403 and after == 401 and "httponly" in flags and "samesite=strict" in flags
    return held(holds, f"login {entered.status_code}, foreign logout {foreign}, the cookie after a logout {after}")


@attack("D3-secrets", "keys in logs and in files that others may read", quick=True)
def secrets(scene: Scene) -> str:
    key = scene.coordinator.key
    home = scene.folder / "coordinator"
    held(key not in scene.log(), "the operator's key is in the coordinator's log")
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (home, home / "operator.key") if path.exists()}
    loose = [name for name, mode in modes.items() if mode[-2:] != "00"]
    arguments = " ".join(psutil.Process(scene.coordinator.pid).cmdline())
    return held(not loose and key not in arguments, f"no key in the log or the arguments; modes {modes}")


@attack("G", "paths, ranges and methods that lead elsewhere", quick=True)
def elsewhere(scene: Scene) -> str:
    hand = scene.hand()
    odd = [
        "/v1/assignments/..%2f..%2fetc/upload/x",
        "/v1/runs/x/files/..%2f..%2foperator.key",
        "/docs/files/..%2fcore.py",
        "/admin/files/..%2fpages.py",
    ]
    codes = {path: hand.http.get(scene.url + path).status_code for path in odd}
    allow = httpx.request("DELETE", f"{scene.url}/v1/runs").headers.get("allow")
    return held(
        all(code in (401, 403, 404, 422) for code in codes.values()) and allow,
        f"{sorted(set(codes.values()))}, a 405 says what is allowed: {allow}",
    )


@attack("E", "what a delta of the embeddings tells of an agent's rows")
def leak(_scene: Scene) -> str:
    return held(
        False, "rows of the embeddings that moved name every token of the rows; the owner can forbid to train them (work.never_train)"
    )
