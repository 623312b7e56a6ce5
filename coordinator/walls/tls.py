"""The coordinator's certificate: the one that lies on the disk now, also after it was renewed."""

import logging
import ssl
import time
from pathlib import Path

from cryptography import x509

from fedcybgd.coordinator.errors import CoordinatorError

log = logging.getLogger("fedcoord")
LOOK_EVERY_S = 5.0
Stamp = tuple[tuple[int, int, int], ...]


class TlsUnusable(CoordinatorError):
    code = "tls_unusable"


class Certificate:
    """Certificate and key; a pair that cannot be used does not replace one that can."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises `TlsUnusable`."""
        self._certificate, self._key = certificate, key
        self._stamp = self._look()
        self._context = self._load()
        self._looked_at = time.monotonic()

    def context(self) -> ssl.SSLContext:
        """For the next connection; connections that are open keep theirs."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_EVERY_S:
            return self._context
        self._looked_at = now
        if (stamp := self._look()) != self._stamp:
            try:
                self._context = self._load()
                log.info("the certificate in %s was renewed, and is used from now on", self._certificate)
            except TlsUnusable as error:
                log.warning("%s; the one of before stays in use", error.message)
            self._stamp = stamp
        return self._context

    def _look(self) -> Stamp | None:
        try:
            return tuple((s.st_mtime_ns, s.st_ino, s.st_size) for s in (self._certificate.stat(), self._key.stat()))
        except OSError:
            return None

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise TlsUnusable(f"{self._certificate} with {self._key} cannot be used for HTTPS: {error}") from error
        return context


def names_in(certificate: Path) -> list[str]:
    """The names that it is for. None where that cannot be told: it cannot be read, or is for all names of a kind."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (OSError, ValueError, x509.ExtensionNotFound):
        return []
    names = found.value.get_values_for_type(x509.DNSName)
    return [] if any("*" in name for name in names) else names


def _no_password() -> str:
    raise ValueError("the key is encrypted; a coordinator that starts by itself needs one that is not")
