"""A certificate and a key that a coordinator cannot serve with, and keys that would cross a network unencrypted."""

import contextlib
import os
import socket
import ssl
import threading
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner

from fedcybgd.agent import cli as agent_cli
from fedcybgd.agent import reaching
from fedcybgd.agent.connection import connect
from fedcybgd.agent.settings import Home
from fedcybgd.client.connection import Connection
from fedcybgd.coordinator.serve import address, certificate_of
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.walls.tls import TlsUnusable
from fedcybgd.shared.host.addresses import PlainAddress
from fedcybgd.shared.host.authorities import believed as authorities

HERE = socket.gethostname()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    certificate = trustme.CA().issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    return Settings(home=tmp_path / "home", tls_certificate=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")


def test_a_certificate_with_its_key_is_taken(settings: Settings) -> None:
    assert certificate_of(settings) is not None
    assert certificate_of(Settings(home=settings.home)) is None


@pytest.mark.parametrize(
    ("names", "host", "said"),
    [
        (["coordinator.example", "other.example"], "0.0.0.0", "coordinator.example"),
        (["other.example", HERE], "0.0.0.0", HERE),
        (["coordinator.example"], "127.0.0.1", "coordinator.example"),
        (["coordinator.example", "localhost"], "127.0.0.1", "localhost"),
        (["*.example", "example.org"], "0.0.0.0", HERE),
        (["10.0.0.7"], "0.0.0.0", HERE),
    ],
)
def test_the_address_that_is_told_is_one_that_the_certificate_is_for(tmp_path: Path, names: list[str], host: str, said: str) -> None:
    trustme.CA().issue_cert(*names).cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    settings = Settings(home=tmp_path, host=host, tls_certificate=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert address(settings, listener) == f"https://{said}:{listener.getsockname()[1]}"


@pytest.mark.parametrize("broken", ["key", "certificate", "another's key", "encrypted key"])
def test_what_cannot_be_served_with_is_named(settings: Settings, broken: str) -> None:
    certificate, key = settings.tls_certificate, settings.tls_key
    assert certificate is not None
    assert key is not None
    match broken:
        case "key":
            key.write_text("no key")
        case "certificate":
            certificate.unlink()
        case "another's key":
            trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(key)
        case "encrypted key":
            loaded = serialization.load_pem_private_key(key.read_bytes(), None)
            encryption = serialization.BestAvailableEncryption(b"secret")
            key.write_bytes(loaded.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    with pytest.raises(TlsUnusable) as caught:
        certificate_of(settings)
    assert f"{certificate} with {key} cannot be used for HTTPS" in caught.value.message


@pytest.mark.parametrize("given", ["tls_certificate", "tls_key"])
def test_one_without_the_other_is_refused(settings: Settings, given: str) -> None:
    with pytest.raises(TlsUnusable, match="needs both"):
        certificate_of(Settings(home=settings.home, **{given: getattr(settings, given)}))


FAR, NEAR = "http://coordinator.example:8440", "http://127.0.0.1:8440"


@pytest.mark.parametrize(
    "url", [FAR, "http://192.0.2.1", "http://[2001:db8::1]:8440", "http://127.0.0.1.evil.example", "http://localhost@evil.example"]
)
def test_an_operators_key_does_not_go_over_plain_http(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDCOORD_PLAIN_HTTP", raising=False)
    with pytest.raises(PlainAddress, match="FEDCOORD_PLAIN_HTTP=allowed"):
        Connection(url, "fco_x")
    monkeypatch.setenv("FEDCOORD_PLAIN_HTTP", "allowed")
    assert Connection(url, "fco_x").url == url


@pytest.mark.parametrize("url", [NEAR, "http://localhost:1", "http://[::1]:8440", "https://coordinator.example"])
def test_https_and_this_machine_need_no_word(url: str) -> None:
    assert Connection(url, "fco_x").url == url


def test_an_agent_speaks_no_plain_http_beyond_its_machine_unless_told(tmp_path: Path) -> None:
    data = '[data]\npath = "rows.jsonl"\n'
    for url, more, good in (
        (FAR, "", False),
        (FAR, "plain_http = true\n", True),
        (NEAR, "", True),
        ("https://coordinator.example", "", True),
    ):
        home = Home(tmp_path)
        home.config.write_text(f'coordinator = "{url}"\n{more}{data}')
        if good:
            assert reaching.load(home)[0].coordinator == url
        else:
            with pytest.raises(PlainAddress, match="plain_http = true"):
                reaching.load(home)


def test_no_token_is_spent_over_plain_http(tmp_path: Path) -> None:
    words = ["enroll", FAR, "--token", "fct_" + "x" * 43, "--home", str(tmp_path), "--runs", "x"]
    result = CliRunner().invoke(agent_cli.app, words)
    assert isinstance(result.exception, PlainAddress)
    assert "--plain-http" in result.exception.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("believed", ["its own", "another", "those of this machine"])
def test_an_agent_believes_the_authority_that_is_named_and_no_other(tmp_path: Path, believed: str) -> None:
    theirs, context, file = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tmp_path / "ca.pem"
    theirs.issue_cert("localhost").configure_cert(context)
    (theirs if believed == "its own" else trustme.CA()).cert_pem.write_to_path(file)

    def serve() -> None:
        sock, _ = listener.accept()
        with contextlib.suppress(OSError), context.wrap_socket(sock, server_side=True) as spoken:
            spoken.recv(65536)
            spoken.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        http = connect(f"https://localhost:{listener.getsockname()[1]}", "", None if believed == "those of this machine" else file)
        if believed == "its own":
            assert http.get("/health").status_code == 204
        else:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                http.get("/health")
        thread.join(10)


def test_authorities_are_read_once_and_again_where_they_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "other"):
        trustme.CA().cert_pem.write_to_path(tmp_path / name)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "one"))
    first = authorities(httpx.create_ssl_context)
    assert authorities(httpx.create_ssl_context) is first
    (tmp_path / "one").write_bytes((tmp_path / "other").read_bytes())
    os.utime(tmp_path / "one", ns=(1, 1))
    renewed = authorities(httpx.create_ssl_context)
    assert renewed is not first
    assert renewed.get_ca_certs() != first.get_ca_certs()
