"""`fedagent serve-cache`."""

import logging
import signal
import ssl
import threading
from pathlib import Path
from typing import Annotated

import typer
from platformdirs import user_cache_path

from fedcybgd.agent.alone import alone
from fedcybgd.agent.errors import ConfigError, OptionWrong
from fedcybgd.shared.host import started
from fedcybgd.shared.host.addresses import PlainAddress, address_of, check_way, is_loopback
from fedcybgd.shared.host.machine import raise_open_files
from fedcybgd.shared.host.terminal import Terminal, log_plainly
from fedcybgd.shared.host.watchdog import Watchdog

PORT = 8441


def serve_cache(
    coordinator: Annotated[str, typer.Argument(help="URL of the coordinator, the only one that is asked.")],
    host: Annotated[
        str, typer.Option(help="Address to listen at; 127.0.0.1 is this machine alone, 0.0.0.0 every network that it is in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0: a free one.", min=0, max=65535)] = PORT,
    directory: Annotated[
        Path | None, typer.Option(help="Where shards are kept; by default the user's directory for caches.", file_okay=False)
    ] = None,
    disk_gb: Annotated[
        float, typer.Option(help="Shards at the most, in 1e9 bytes; those that nobody asked for longest go.", min=0.001)
    ] = 20,
    storage: Annotated[
        list[str] | None,
        typer.Option(
            help="Host that the coordinator may send to for shards, as in bucket.example or http://10.0.0.5:9000; give it once for each. "
            "Default: any host of the internet, by https. '' : none."
        ),
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file of a certificate: agents ask by https.", dir_okay=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key.", dir_okay=False)] = None,
    plain_http: Annotated[
        bool, typer.Option("--plain-http", help="Let http:// go beyond this machine: who is on the way reads the shards.")
    ] = False,
    metrics: Annotated[
        int | None, typer.Option(help="Port on which this machine, and no other, can read metrics (Prometheus).", min=0, max=65535)
    ] = None,
    until_eof: Annotated[
        bool, typer.Option("--until-eof", help="For programs: stop when standard input ends, as it does with whoever started this.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
) -> None:
    """Have the agents of one site fetch each shard once: serve them what one of them has fetched, until SIGTERM or Ctrl-C."""
    from fedcybgd.agent.cache import ShardCache  # they take a while to load
    from fedcybgd.agent.metrics import MetricsPort
    from fedcybgd.agent.site.metrics import COUNTED, METRICS
    from fedcybgd.agent.site.server import CachePort
    from fedcybgd.agent.site.shards import SiteShards
    from fedcybgd.agent.site.upstream import Upstream
    from fedcybgd.shared.contract.metrics import MetricEntry, text
    from fedcybgd.shared.host.counters import Counters

    url, tls = address_of(coordinator), _certificate(tls_certificate, tls_key)
    check_way(url, plain_http, "give --plain-http")
    if tls is None and not plain_http and not is_loopback(host):
        raise PlainAddress(
            f"{host} is reached from other machines, and without a certificate who is on the way reads the shards: "
            "give --tls-certificate and --tls-key, or --plain-http"
        )
    log_plainly(logging.DEBUG if verbose else logging.INFO)
    for library in ("httpx", "httpcore"):
        logging.getLogger(library).setLevel(logging.WARNING)
    raise_open_files()
    if until_eof:
        started.stop_at_eof()
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    place, most = (directory or user_cache_path("fedagent-site-cache")).expanduser().resolve(), int(disk_gb * 1e9)
    _make(place)
    with alone(place / "lock", "a site cache works"):
        cache, counters = ShardCache(place / "shards", most), Counters(COUNTED)
        upstream = Upstream(url, None if storage is None else [name for name in storage if name])

        def shown() -> str:
            disk = (("fedagent_cache_disk_bytes", cache.size()), ("fedagent_cache_disk_limit_bytes", most))
            return text(METRICS, [*counters.entries(), *(MetricEntry(name, value) for name, value in disk)])

        if metrics is not None:
            logging.getLogger("fedagent").info("metrics at %s", MetricsPort(metrics, shown).url)
        serving = CachePort((host, port), upstream, SiteShards(cache, upstream, counters), counters, tls, Watchdog.of())
        Terminal().say(f"site cache of {url} at {serving.url}; in {place}, {disk_gb:g} GB at the most")
        end.wait()
        serving.close()
        upstream.close()


def _certificate(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise OptionWrong("--tls-certificate and --tls-key go together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{certificate} and {key} are no certificate with its key: {error}") from error
    return context


def _make(place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        (place / "lock").touch()
    except OSError as error:
        raise ConfigError(f"{place} cannot be used: {error.strerror or error}; name another one with --directory") from error
