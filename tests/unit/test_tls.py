"""What a coordinator says of a certificate and a key that it cannot serve with."""

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from fedcybgd.coordinator.serve import certificate_of
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.walls.tls import TlsUnusable


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    certificate = trustme.CA().issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    return Settings(home=tmp_path / "home", tls_certificate=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")


def test_a_certificate_with_its_key_is_taken(settings: Settings) -> None:
    assert certificate_of(settings) is not None
    assert certificate_of(Settings(home=settings.home)) is None


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
