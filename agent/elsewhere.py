"""Fetches bytes from another host that the coordinator sends to: as far as the owner allows, and without a word of who asks.

A coordinator is not trusted: it must not have this machine ask around in the network that it stands in.
"""

import contextlib
import ipaddress
import logging
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple
from urllib.request import getproxies, proxy_bypass

import httpx

from fedcybgd.agent.errors import Unreachable
from fedcybgd.agent.heads import bound_heads
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.contract.words import ELSEWHERE
from fedcybgd.shared.host.authorities import believed
from fedcybgd.shared.host.bodies import BodyInvalid
from fedcybgd.shared.host.rarely import Rarely

log = logging.getLogger("fedagent.elsewhere")
TIMEOUT = httpx.Timeout(30, connect=10)
PORTS = {"https": 443, "http": 80}
FAILED_S, REFUSED_S = 300.0, 3600.0
"""For so long all bytes are asked of the coordinator itself, after another host did not serve, or may not be asked."""
INTERNET = ipaddress.ip_network("2000::/3")
"""All that was ever given out of IPv6. Beside it are ways to a network's own addresses: of IPv4 by a translator (64:ff9b::/96, 64:ff9b:1::/48,
::ffff:0:0:0/96, ::/96), and of a site (fec0::/10)."""
ADVICE = "where it is meant, name it in policy.toml (coordinator.storage)"
Resolve = Callable[[str, int], list[str]]


class OtherHostFailed(Unreachable):
    """Another host did not serve what it was to serve, or may not be asked. The coordinator has the bytes too."""


class Origin(NamedTuple):
    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, text: str) -> "Origin":
        """As an owner writes it: https:// and its port may be left out."""
        scheme, _, rest = text.rpartition("://")
        host, _, port = rest.partition(":")
        return cls(scheme or "https", host.lower(), int(port or PORTS[scheme or "https"]))


def addresses(host: str, port: int) -> list[str]:
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


class Rest:
    """Until when no other host is asked."""

    until = 0.0


class OtherHosts:
    """To be used by one thread; several may share what they know of who does not serve, their `rest`."""

    def __init__(self, allowed: Sequence[str] | None = None, resolve: Resolve = addresses, rest: Rest | None = None) -> None:
        """`allowed`: the only hosts that may be asked, none if empty. None: any whose addresses are all of the internet, by https."""
        self._allowed = None if allowed is None else [Origin.of(text) for text in allowed]
        self._resolve = resolve
        self._rests = rest or Rest()
        self._asked = False
        self._rarely = Rarely()
        self._http: tuple[str | None, httpx.Client] | None = None

    def headings(self) -> dict[str, str]:
        """Of a request to the coordinator: whether it may send elsewhere for what is asked."""
        self._asked = False
        return {ELSEWHERE: "yes"} if self.allows else {}

    @property
    def allows(self) -> bool:
        """Whether any other host is asked at present."""
        return self._allowed != [] and time.monotonic() >= self._rests.until

    def blame(self) -> bool:
        """Whether what came last, and was wrong, came from elsewhere: then the coordinator is asked itself from now on, for a while."""
        if self._asked:
            self._rest(FAILED_S, "what came from the host that the coordinator sent to has another digest")
        return self._asked

    @contextlib.contextmanager
    def fetch(self, address: str, offset: int) -> Iterator[httpx.Response]:
        """Stream from `offset` on, as `Client.shard` does. Raises `OtherHostFailed` where it is no good, and `Unreachable` where it is cut."""
        url, at, http = self._way(address)
        headers = {"Host": url.netloc.decode("ascii")} | ({"Range": f"bytes={offset}-"} if offset else {})
        self._asked = True
        came = False
        try:
            with http.stream("GET", at, headers=headers, extensions={"sni_hostname": url.host}) as answer:
                if answer.status_code not in (200, 206, 416):
                    raise self._failed(url.host, f"it answered {answer.status_code}")
                came = True
                yield answer
        except (httpx.HTTPError, BodyInvalid) as error:
            if came:  # it may go on where it stopped
                raise Unreachable(f"the transfer from {url.host} was cut: {one_line(str(error))[:200]}") from error
            raise self._failed(url.host, one_line(str(error))[:200] or type(error).__name__) from error

    def close(self) -> None:
        if self._http is not None:
            self._http[1].close()
            self._http = None

    def _way(self, address: str) -> tuple[httpx.URL, httpx.URL, httpx.Client]:
        """The address, the same by number, and with what it is asked. Raises `OtherHostFailed` unless it may be asked."""
        try:
            url = httpx.URL(address)
        except (httpx.InvalidURL, TypeError, ValueError) as error:
            raise self._refused("an address that is none", str(error)) from error
        origin = Origin(url.scheme, url.host.lower(), url.port or PORTS.get(url.scheme, 0))
        if url.scheme not in PORTS or not url.host or url.userinfo:
            raise self._refused(f"{url.scheme}://{url.host}", "that is no plain address of a host")
        if self._allowed is not None:
            if not any(_matches(origin, one) for one in self._allowed):
                raise self._refused(f"{url.scheme}://{url.host}:{origin.port}", "policy.toml does not name it (coordinator.storage)")
            return url, url, self._client(None)
        if url.scheme != "https":
            raise self._refused(f"http://{url.host}", f"that is plain HTTP; {ADVICE}")
        if _goes_through_a_proxy(url.host):  # which alone knows where the name leads
            raise self._refused(url.host, f"it is reached through a proxy; {ADVICE}")
        return url, url.copy_with(host=self._public(origin)), self._client(url.host)

    def _public(self, origin: Origin) -> str:
        """An address of the host, as it was looked up and checked: whoever answers for its name might say another one next time."""
        try:
            found = self._resolve(origin.host, origin.port)
        except (OSError, UnicodeError) as error:
            raise self._failed(origin.host, f"its name leads nowhere: {error}") from error
        if not found or not all(map(is_public, found)):
            raise self._refused(origin.host, f"it is not of the internet, but of a network in which this machine stands; {ADVICE}")
        return found[0]

    def _client(self, host: str | None) -> httpx.Client:
        """For a host that is asked by its address one of its own: a connection is another's to whom another certificate belongs. None: for all others."""
        if self._http is None or self._http[0] != host:
            self.close()
            client = httpx.Client(
                headers={"Accept-Encoding": "identity"}, timeout=TIMEOUT, follow_redirects=False, trust_env=host is None,
                verify=believed(httpx.create_ssl_context),
            )  # fmt: skip
            self._http = host, bound_heads(client)
        return self._http[1]

    def _refused(self, where: str, why: str) -> OtherHostFailed:
        where = one_line(where)[:200]
        self._rest(REFUSED_S, f"the coordinator sends to {where} for shards, which is not followed: {one_line(why)[:300]}")
        return OtherHostFailed(f"{where} is not asked: {one_line(why)[:300]}")

    def _failed(self, where: str, why: str) -> OtherHostFailed:
        self._rest(FAILED_S, f"{one_line(where)[:200]}, to which the coordinator sends for shards, does not serve: {why}")
        return OtherHostFailed(f"{one_line(where)[:200]} does not serve: {why}")

    def _rest(self, seconds: float, why: str) -> None:
        self._rests.until = time.monotonic() + seconds
        if self._rarely.is_due():
            log.warning("%s; the coordinator itself is asked meanwhile", why)


def _matches(origin: Origin, allowed: Origin) -> bool:
    return (origin.scheme, origin.port) == (allowed.scheme, allowed.port) and fnmatchcase(origin.host, allowed.host)


def is_public(address: str) -> bool:
    """Whether an address is one of the internet, in whatever form it is written."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and (found not in INTERNET or found.sixtofour or found.teredo):
        return False
    return found.is_global and not found.is_multicast


def _goes_through_a_proxy(host: str) -> bool:
    proxies = getproxies()
    return bool(proxies.get("https") or proxies.get("all")) and not proxy_bypass(host)
