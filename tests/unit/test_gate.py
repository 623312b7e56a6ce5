"""Who must go when there are too many, how often is too often, and which certificate is shown."""

import os
import ssl
import time
from pathlib import Path

import pytest
import trustme
from fastapi import FastAPI

from fedcybgd.coordinator.serve import PlainHttpRefused, agents_served, certificate_of, check_listening, configured, threads_for
from fedcybgd.coordinator.settings import Settings
from fedcybgd.coordinator.walls import tls
from fedcybgd.coordinator.walls.body import TooDeep, check_depth
from fedcybgd.coordinator.walls.connections import MOST_OF_ONE, Connections, Guest, neighbourhood
from fedcybgd.coordinator.walls.rates import Buckets, Rate


class Hall:
    """Connections, and who was shown out."""

    def __init__(self, most: int) -> None:
        self.connections = Connections(most)
        self.out: list[Guest] = []

    def come(self, address: str, key: str | None = None, answering: bool = False) -> Guest:
        guest = Guest(address, time.monotonic(), lambda: self.out.append(guest), answering=answering)
        self.connections.came(guest)
        if key is not None:
            self.connections.proven(guest, key)
        return guest


def test_whoever_comes_is_let_in_and_the_one_who_waited_longest_goes() -> None:
    hall = Hall(8)
    guests = [hall.come("a") for _ in range(7)]
    assert hall.out == guests[:3]
    assert len(hall.connections) == 4


def test_the_address_with_the_most_makes_room() -> None:
    hall = Hall(10)
    honest = hall.come("honest")
    for _ in range(20):
        hall.come("hostile")
    assert honest not in hall.out
    assert len(hall.connections) == 5


def test_who_is_being_answered_goes_last() -> None:
    hall = Hall(8)
    first, idle, second = hall.come("a", answering=True), hall.come("a"), hall.come("a", answering=True)
    hall.come("a")
    hall.come("a")
    assert hall.out == [idle]
    assert first not in hall.out
    assert second not in hall.out


def test_a_good_key_is_in_nobodys_way() -> None:
    hall = Hall(1000)
    agents = [hall.come("one-nat", key=f"agent-{n}") for n in range(600)]
    for _ in range(1000):
        hall.come("one-nat")
    assert not set(agents) & set(hall.out)
    assert len(hall.connections) == 1000


def test_one_key_has_not_all_connections() -> None:
    hall = Hall(1000)
    other = hall.come("a", key="other")
    mine = [hall.come("a", key="greedy") for _ in range(MOST_OF_ONE + 5)]
    assert hall.out == mine[:5]
    assert other not in hall.out


def test_where_all_have_keys_the_newcomer_goes() -> None:
    hall = Hall(4)
    agents = [hall.come("a", key=f"agent-{n}") for n in range(4)]
    late = hall.come("b")
    assert hall.out == [late]
    assert len(hall.connections) == len(agents)


def test_who_left_is_not_counted_twice() -> None:
    hall = Hall(4)
    guest = hall.come("a", key="k")
    for _ in range(2):
        hall.connections.left(guest)
    hall.connections.proven(guest, "another")
    assert len(hall.connections) == 0


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("testclient", "testclient"),
    ],
)
def test_one_household_is_one_place(address: str, place: str) -> None:
    assert neighbourhood(address) == place


def test_a_bucket_fills_again() -> None:
    buckets = Buckets(Rate(at_once=2, per_s=0.5))
    assert [buckets.take("a", 0.0) for _ in range(3)] == [0, 0, 2]
    assert buckets.empty_for("a", 1.0) == 1
    assert buckets.take("b", 0.0) == 0
    assert [buckets.take("a", 100.0) for _ in range(3)] == [0, 0, 2]


@pytest.mark.parametrize("text", [b"[" * 65 + b"]" * 65, b'{"a":[' * 40, b'["]",' * 65])
def test_depth_is_counted_outside_of_texts(text: bytes) -> None:
    with pytest.raises(TooDeep):
        check_depth(text)


@pytest.mark.parametrize("text", [b"", b"[]," * 1000, b'"' + b"[" * 1000 + b'"', b'"\\"' + b"{" * 200 + b'"', b"[" * 64])
def test_what_is_flat_is_not_deep(text: bytes) -> None:
    assert check_depth(text) is None


@pytest.mark.parametrize(("files", "threads"), [(256, 8), (1024, 40), (1 << 20, 40), (64, 4)])
def test_half_of_the_open_files_are_for_connections(files: int, threads: int) -> None:
    assert threads_for(files, 40) == threads
    if files > 200:
        assert agents_served(files, threads) >= files // 2


def pair(authority: trustme.CA, folder: Path) -> bytes:
    made = authority.issue_cert("localhost")
    made.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    made.private_key_pem.write_to_path(folder / "key.pem")
    return made.cert_chain_pems[0].bytes()


def test_a_renewed_certificate_is_taken_up_and_a_broken_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "LOOK_EVERY_S", 0)
    authority = trustme.CA()
    pair(authority, tmp_path)
    certificate = certificate_of(Settings(home=tmp_path, tls_certificate=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem"))
    assert certificate is not None
    first = certificate.context()
    assert certificate.context() is first
    pair(authority, tmp_path)
    os.utime(tmp_path / "cert.pem", ns=(1, 1))
    second = certificate.context()
    assert second is not first
    assert isinstance(second, ssl.SSLContext)
    (tmp_path / "key.pem").write_text("half a key")
    assert certificate.context() is second


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "coordinator.example"])
def test_plain_http_beyond_this_machine_is_refused_unless_told(host: str, tmp_path: Path) -> None:
    with pytest.raises(PlainHttpRefused, match="FEDCOORD_PLAIN_HTTP=allowed"):
        check_listening(Settings(home=tmp_path, host=host), None)
    check_listening(Settings(home=tmp_path, host=host, plain_http="allowed"), None)
    check_listening(Settings(home=tmp_path, host=host, proxies="10.0.0.0/8"), None)


@pytest.mark.parametrize(("proxies", "believed"), [(None, "127.0.0.1,::1"), ("10.0.0.0/8", "10.0.0.0/8")])
def test_whose_word_on_addresses_counts_is_said_by_no_other_variable(
    proxies: str | None, believed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of others set it to all."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    settings = Settings(home=tmp_path, proxies=proxies)
    assert configured(FastAPI(), settings).forwarded_allow_ips == believed


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.2"])
def test_plain_http_on_this_machine_is_as_before(host: str, tmp_path: Path) -> None:
    assert check_listening(Settings(home=tmp_path, host=host), None) is None
