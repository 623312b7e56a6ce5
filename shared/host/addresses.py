"""Addresses of coordinators as people give them, and what may be wrong where none answers."""

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.plain import one_line

DIRECT: dict[str, None] = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))
"""`mounts` of a client of httpx: whatever proxy the environment names, none leads back to this machine"""
PAGES = re.compile(r"/(admin|v1|docs)(/.*)?$")


class AddressInvalid(FedError):
    """What should be the address of a coordinator is none."""

    code = "address_invalid"


class PlainAddress(FedError):
    """An address without encryption, beyond this machine."""

    code = "plain_http_refused"


def address_of(text: str) -> str:
    """The address alone: what people copy from a browser has more. Raises `AddressInvalid`."""
    url = text.strip().rstrip("/")
    if re.fullmatch(r"https?://[^/\s?#]+(/[^\s?#]*)?", url) is None:
        raise AddressInvalid(
            f"{text[:120]!r} is no address of a coordinator; it begins with http:// or https://, then comes the host, "
            "as in https://coordinator.example"
        )
    _parts(url)
    return PAGES.sub("", url)


def _parts(url: str) -> SplitResult:
    """Raises `AddressInvalid` for a port or a name of a host that no network knows."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if ":" not in host:  # a number of IPv6
            host.encode("idna").decode("idna")
        if parts.port == 0:
            raise ValueError("port 0 is none")
    except ValueError as error:
        raise AddressInvalid(f"{url[:120]!r} is no address of a coordinator: {one_line(str(error))[:200]}") from error
    return parts


def is_loopback(host: str) -> bool:
    """Whether a host is this very machine, by its name or number alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def check_way(url: str, plain_allowed: bool, how: str) -> None:
    """Raise `PlainAddress` where a key would cross a network unencrypted, and nobody has said that this is meant; `how` tells where to say so."""
    parts = _parts(url)
    if parts.scheme != "https" and not plain_allowed and not is_loopback(parts.hostname or ""):
        raise PlainAddress(
            f"{url} is plain HTTP: whoever is on the way reads the key and every delta, and can answer in the coordinator's place. "
            f"Use https://; or, where the network itself is trusted, {how}"
        )


def hint(url: str, error: Exception) -> str:
    """What may be the reason that nobody answers at `url`, as the end of a sentence; empty where nothing is known."""
    said = str(error).lower()
    if url.startswith("https://") and any(
        sign in said for sign in ("wrong_version_number", "wrong version number", "record layer failure")
    ):
        return "; what answers there speaks plain HTTP: try http://"
    if "certificate_verify_failed" in said:
        return "; if your organisation signs its own certificates, name its authority: SSL_CERT_FILE=/path/to/ca.pem"
    if url.startswith("http://") and "disconnected without sending a response" in said:
        return "; where it has never answered, perhaps HTTPS is spoken: try https://"
    return ""
