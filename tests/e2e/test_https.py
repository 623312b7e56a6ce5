"""A coordinator that speaks HTTPS by itself, with a certificate of a private authority."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from fedcybgd import Coordinator
from tests.support.processes import ENVIRONMENT, NO_JOBS, wait_for


def _call(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"fedcybgd.{program}.cli", *arguments]
    return subprocess.run(command, env={**os.environ, **ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=60)


@pytest.fixture
def coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Coordinator]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("localhost")
    for index, pem in enumerate(certificate.cert_chain_pems):
        pem.write_to_path(tmp_path / "cert.pem", append=index > 0)
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with Coordinator.local(
        tmp_path / "coordinator",
        host="localhost",
        tls_certificate=tmp_path / "cert.pem",
        tls_key=tmp_path / "key.pem",
        environment=ENVIRONMENT,
        **NO_JOBS,
    ) as started:
        yield started


def test_operator_and_agent_speak_https_and_check_the_certificate(coordinator: Coordinator, tmp_path: Path) -> None:
    assert coordinator.url.startswith("https://localhost:")
    operator = {"FEDCOORD_URL": coordinator.url, "FEDCOORD_OPERATOR_KEY": coordinator.key}
    token = _call("coordinator", "agents", "token", **operator).stdout.split()[0]
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": 0}\n')
    enrolment = (
        "enroll",
        coordinator.url,
        "--token",
        token,
        "--name",
        "far",
        "--data",
        str(tmp_path / "rows.jsonl"),
        "--home",
        str(tmp_path / "far"),
    )
    # Whoever does not trust the authority does not send the token.
    stranger = _call("agent", *enrolment, SSL_CERT_FILE="")
    assert stranger.returncode == 1
    assert "CERTIFICATE_VERIFY_FAILED" in stranger.stderr
    assert "Traceback" not in stranger.stderr
    enrolled = _call("agent", *enrolment)
    assert enrolled.returncode == 0, enrolled.stderr
    agent = subprocess.Popen(
        [sys.executable, "-m", "fedcybgd.agent.cli", "run", "--home", str(tmp_path / "far")], env={**os.environ, **ENVIRONMENT}
    )
    try:
        wait_for(lambda: coordinator.client.status().waiting_claims == 1)
    finally:
        agent.terminate()
        agent.wait(timeout=30)
