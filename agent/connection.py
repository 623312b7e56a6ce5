"""How this machine reaches a coordinator: proxies and certificate authorities of the environment, and what to do where they fail."""

import ssl
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from fedcybgd.agent.errors import ConfigError
from fedcybgd.agent.heads import bound_heads
from fedcybgd.agent.signing import Signer
from fedcybgd.shared.contract.versions import SPOKEN, VERSION
from fedcybgd.shared.contract.words import API
from fedcybgd.shared.host.addresses import DIRECT, hint
from fedcybgd.shared.host.authorities import believed

TIMEOUT = httpx.Timeout(30, connect=10)
ADVICE = {
    "Temporary failure in name resolution": "is this machine online, and is the name right?",
    "Name or service not known": "is the name right?",
    "Too many open files": "raise the limit of open files (ulimit -n)",
}


def connect(url: str, key: str | Signer, authority: Path | None = None) -> httpx.Client:
    """A pool of connections. Redirects are not followed: a key goes to the address that a person wrote, and to no other.

    `authority` is the PEM file of the only certificate authority that is believed; None: those of this machine.
    """
    # As it is: shards are resumed at a byte, and what unpacks itself may be large.
    headers = {"Accept-Encoding": "identity", VERSION: str(SPOKEN)}
    if isinstance(key, str) and key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        verify = ssl.create_default_context(cafile=str(authority)) if authority is not None else believed(httpx.create_ssl_context)
        auth = key if isinstance(key, Signer) else None
        client = httpx.Client(
            base_url=url.rstrip("/") + API, headers=headers, auth=auth, timeout=TIMEOUT, follow_redirects=False, verify=verify,
            mounts=DIRECT,
        )  # fmt: skip
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
        raise ConfigError(
            f"the connection cannot be set up ({error}): look at the URL, SSL_CERT_FILE, HTTPS_PROXY and HTTP_PROXY"
        ) from error
    return bound_heads(client)


def why(url: str, error: Exception) -> str:
    """What a failed call says, the proxy that it went through, and what to do."""
    text = str(error).rstrip(".") or type(error).__name__
    advice = "".join(f"; {then}" for sign, then in ADVICE.items() if sign.lower() in text.lower())
    return f"{text}{_through(url)}{hint(url, error)}{advice}"


def _through(url: str) -> str:
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or not parts.hostname or f"all://{parts.netloc.removesuffix(f':{parts.port}')}" in DIRECT or proxy_bypass(parts.hostname):
        return ""
    seen = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    bare = urlunsplit((seen.scheme, seen.netloc.rpartition("@")[2], "", "", ""))
    return f" (through the proxy {bare} of the environment: HTTP_PROXY, HTTPS_PROXY; NO_PROXY={parts.hostname} goes without)"
