"""A coordinator with few open files, and a crowd of connections that want nothing: whoever wants something is answered."""

import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.processes import ENVIRONMENT, wait_for

HALF_OPEN = 400
HOSTILE = 60
HEALTHY_S = 1.0


@pytest.fixture(params=[256, 1024])
def ready(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (request.param, request.param))

    file = tmp_path / "ready.json"
    command = [
        sys.executable,
        "-m",
        "fedcybgd.coordinator.cli",
        "serve",
        "--home",
        str(tmp_path / "c"),
        "--port",
        "0",
        "--ready-file",
        str(file),
    ]
    environment = {**os.environ, **ENVIRONMENT, "FEDCOORD_LANES": "none"}
    process = subprocess.Popen(command, preexec_fn=few_files, env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: file.exists() and file.read_text())
        yield json.loads(file.read_text())["ready"]
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0


def test_health_and_an_agent_are_answered_in_the_middle_of_it(ready: Any) -> None:
    url, key = ready["url"], ready["operator_key"]
    host, port = url.removeprefix("http://").split(":")
    crowd = []
    for _ in range(HALF_OPEN):
        crowd.append(socket.create_connection((host, int(port)), timeout=10))
        crowd[-1].sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n")
    over, seen = threading.Event(), Counter[int]()

    def hostile(number: int) -> None:
        with httpx.Client(base_url=url, timeout=30, verify=False, headers={"Authorization": f"Bearer fco_{number:043d}"}) as http:
            while not over.is_set():
                try:
                    answer = (
                        http.get("/v1/status") if number % 2 else http.post("/v1/agents", json={"token": "fct_" + "x" * 43, "name": "a"})
                    )
                    seen[answer.status_code] += 1
                except httpx.HTTPError:
                    pass

    threads = [threading.Thread(target=hostile, args=(n,), daemon=True) for n in range(HOSTILE)]
    for thread in threads:
        thread.start()
    wait_for(lambda: seen[429] > 50)
    slowest = []
    for _ in range(10):
        began = time.monotonic()
        assert httpx.get(f"{url}/v1/health", timeout=10).status_code == 200
        slowest.append(time.monotonic() - began)
    operator = httpx.Client(base_url=f"{url}/v1", headers={"Authorization": f"Bearer {key}"}, timeout=10)
    token = operator.post("/enrolment-tokens", json={}).json()["token"]
    enrolled = httpx.post(f"{url}/v1/agents", json={"token": token, "name": "honest"}, timeout=10)
    assert enrolled.status_code == 201
    agent = httpx.Client(base_url=f"{url}/v1", headers={"Authorization": f"Bearer {enrolled.json()['key']}"}, timeout=10)
    assert agent.post("/assignments/claim", params={"wait": 0}, json={"runs": ["*"]}).status_code == 204
    over.set()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(slowest)[len(slowest) // 2] <= HEALTHY_S, slowest
    assert set(seen) <= {401, 429}
