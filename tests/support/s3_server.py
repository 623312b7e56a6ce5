"""A real S3 server for tests: OpenStack Swift with its S3 API, four processes on this machine, of a Python that has the package `swift`.

It checks signatures, honours If-None-Match, ranges, presigned addresses and multipart uploads. `make s3` installs it beside `.venv`.
"""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import httpx
import obstore
import psutil
from obstore.store import S3Store

KEY, SECRET, REGION = "test:tester", "testing", "us-east-1"
PIPELINE = "catch_errors gatekeeper healthcheck cache listing_formats bulk s3api tempauth copy slo proxy-server"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class S3Server:
    """Answers from its start on until `stop`."""

    def __init__(self, programs: Path, folder: Path) -> None:
        """`programs`: the folder of Swift's, as in `.venv-s3/bin`; in `folder`, which is empty, lies all that it keeps."""
        self._programs, self._folder = programs, folder
        self._processes: list[subprocess.Popen[bytes]] = []
        (folder / "srv" / "d1").mkdir(parents=True)
        (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = tests\n")
        ports = {kind: free_port() for kind in ("account", "container", "object", "proxy")}
        self.endpoint = f"http://127.0.0.1:{ports['proxy']}"
        for kind in ("account", "container", "object"):
            self._ring(kind, ports[kind])
            self._conf(kind, ports[kind], kind + "-server", {})
        self._conf("proxy", ports["proxy"], PIPELINE, {
            "catch_errors": "", "gatekeeper": "", "healthcheck": "", "listing_formats": "", "bulk": "", "copy": "", "slo": "",
            "cache": "use = egg:swift#memcache\nmemcache_servers = 127.0.0.1:1\n",
            "s3api": f"location = {REGION}\ns3_acl = false\nallow_no_owner = true\n",
            "tempauth": f"user_test_tester = {SECRET} .admin\nuser_test_reader = {SECRET}\n",
        })  # fmt: skip
        for kind in ("account", "container", "object", "proxy"):
            self._start(kind)

    @property
    def environment(self) -> dict[str, str]:
        """What names it, and its key, to a client of S3."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": REGION,
            "AWS_ALLOW_HTTP": "true", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        }  # fmt: skip

    def wait(self, seconds: float = 30) -> None:
        until = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(f"{self.endpoint}/healthcheck", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                if time.monotonic() > until or any(process.poll() is not None for process in self._processes):
                    logs = "\n".join(path.read_text()[-2000:] for path in self._folder.glob("*.log"))
                    raise RuntimeError(f"the S3 server did not start:\n{logs}") from None
                time.sleep(0.1)

    def make(self, bucket: str) -> None:
        """Make a bucket, as its owner would with another program."""
        given = {"access_key_id": KEY, "secret_access_key": SECRET, "region": REGION, "endpoint": self.endpoint}
        store = S3Store(bucket, client_options={"allow_http": True}, **given)  # type: ignore[arg-type]
        httpx.put(obstore.sign(store, "PUT", "", timedelta(minutes=1)), timeout=30).raise_for_status()

    @contextmanager
    def killed(self) -> Iterator[None]:
        """What speaks S3 is gone at once, as by a crash; started again afterwards. Those behind it live: what it had given them they finish."""
        process = self._processes.pop()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        yield
        self._start("proxy")
        self.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections, as far as the kernel does so by itself, and answers nothing."""
        os.killpg(self._processes[-1].pid, signal.SIGSTOP)
        yield
        os.killpg(self._processes[-1].pid, signal.SIGCONT)

    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(process.pid) for process in self._processes]

    def stop(self) -> None:
        for process in self._processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _ring(self, kind: str, port: int) -> None:
        builder = str(self._folder / f"{kind}.builder")
        for words in (["create", "4", "1", "0"], ["add", f"r1z1-127.0.0.1:{port}/d1", "1"], ["rebalance"]):
            done = subprocess.run([self._programs / "swift-ring-builder", builder, *words], capture_output=True, text=True)
            if done.returncode > 1:  # 1 is a warning
                raise RuntimeError(done.stdout + done.stderr)

    def _conf(self, kind: str, port: int, pipeline: str, filters: dict[str, str]) -> None:
        text = f"""[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
swift_dir = {self._folder}
devices = {self._folder / "srv"}
mount_check = false
user = {os.environ.get("USER") or "root"}
log_address = /dev/null
log_level = WARNING
fallocate_reserve = 0
disable_fallocate = true

[pipeline:main]
pipeline = {pipeline}

[app:{kind}-server]
use = egg:swift#{kind}
account_autocreate = true
conn_timeout = 10
node_timeout = 60
container_update_timeout = 60
allow_account_management = true
"""
        for name, lines in filters.items():
            text += f"\n[filter:{name}]\n" + (lines if "use =" in lines else f"use = egg:swift#{name}\n{lines}")
        (self._folder / f"{kind}.conf").write_text(text)

    def _start(self, kind: str) -> None:
        with (self._folder / f"{kind}.log").open("wb") as log:
            command = [self._programs / f"swift-{kind}-server", str(self._folder / f"{kind}.conf")]
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True))
