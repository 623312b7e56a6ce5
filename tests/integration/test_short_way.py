"""A claim by the short way is answered as by the long one, and real agents' claims take the short one."""

from typing import Any

import httpx
import pytest

from fedcybgd.agent.client import Client
from fedcybgd.agent.signing import Signer, new_private_key
from fedcybgd.coordinator.api import short_way
from fedcybgd.coordinator.api.short_way import ClaimAsked
from fedcybgd.shared.contract.agents import ClaimRequest, DeclaredLimits, DeviceInfo, EnrolRequest
from fedcybgd.shared.contract.versions import VERSION
from fedcybgd.shared.contract.words import DAEMON
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, fresh, start_run

pytestmark = pytest.mark.database_decides
GOOD: dict[str, Any] = {"params": {"wait": "0.05"}, "json": {"runs": ["nothing"]}}
ODD: dict[str, dict[str, Any]] = {
    "a wait that is none": GOOD | {"params": {"wait": "long"}},
    "too long a wait": GOOD | {"params": {"wait": "60.5"}},
    "two waits": GOOD | {"params": [("wait", "0"), ("wait", "0")]},
    "a body that is no JSON": {"params": {"wait": "0"}, "content": b"{", "headers": {"Content-Type": "application/json"}},
    "no body": {"params": {"wait": "0"}},
    "a field that nobody knows": GOOD | {"json": {"runs": [], "later": 1}},
    "a number below zero": GOOD | {"json": {"limits": {"memory_bytes": -1}}},
    "another type": {"params": {"wait": "0"}, "content": b'{"runs": []}', "headers": {"Content-Type": "text/plain"}},
    "a type with a charset": {"params": {"wait": "0"}, "content": b"{}", "headers": {"Content-Type": "application/json; charset=utf-8"}},
    "a daemon without a name": GOOD | {"headers": {DAEMON: "me"}},
    "a field of a later version": GOOD | {"json": {"runs": [], "later": 1}, "headers": {VERSION: "1.99"}},
}


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[ClaimAsked | None]:
    """What each claim was read as; None: it took the long way."""
    taken: list[ClaimAsked | None] = []
    read = short_way.asked_by

    def noted(*given: Any) -> ClaimAsked | None:
        taken.append(read(*given))
        return taken[-1]

    monkeypatch.setattr(short_way, "asked_by", noted)
    return taken


def told(answer: httpx.Response) -> tuple[int, dict[str, str], bytes]:
    return answer.status_code, {name: value for name, value in answer.headers.items() if name != "date"}, answer.content


@pytest.mark.parametrize("odd", [pytest.param(ODD[what], id=what) for what in ODD])
def test_what_is_odd_is_answered_as_by_the_long_way(
    live: LiveCoordinator, hand: Hand, ways: list[ClaimAsked | None], odd: dict[str, Any]
) -> None:
    answer = hand.http.post("/assignments/claim", **odd)
    assert ways == [None]
    assert answer.status_code in (204, 422)
    good = hand.http.post("/assignments/claim", **GOOD)
    assert ways[1] is not None
    assert good.status_code == 204


def test_nothing_and_work_are_told_alike(
    live: LiveCoordinator, model: str, hand: Hand, ways: list[ClaimAsked | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(live, model, [hand])

    def asked(runs: list[str], wait: str = "0") -> httpx.Response:
        return hand.http.post("/assignments/claim", params={"wait": wait}, json={"runs": runs})

    nothing, work = asked(["nothing"]), asked([run], "20")
    assert all(ways)
    monkeypatch.setattr(short_way, "asked_by", lambda *_: None)
    assert told(nothing) == told(asked(["nothing"]))
    again = asked([run], "20")
    assert work.status_code == again.status_code == 200
    assert work.headers.keys() == again.headers.keys()
    assert list(work.json()) == list(again.json())
    changing = ("attempt", "expires_at", "lease_s", "expires_in_s")
    assert {k: v for k, v in work.json().items() if k not in changing} == {k: v for k, v in again.json().items() if k not in changing}
    assert work.json()["attempt"] + 1 == again.json()["attempt"]


def test_a_real_agent_takes_the_short_way(live: LiveCoordinator, ways: list[ClaimAsked | None]) -> None:
    signer = Signer(new_private_key())
    token = live.operator.post("/enrolment-tokens", {})["token"]
    Client(live.url).enrol(EnrolRequest(token=token, name=fresh("agent"), device=DeviceInfo(), public_key=signer.public_key))
    client = Client(live.url, signer)
    client.as_daemon()
    request = ClaimRequest(runs=["nothing"], limits=DeclaredLimits(memory_bytes=1 << 33))
    assert client.claim(request, wait=0.123456789) is None
    assert ways[0] is not None
    assert (ways[0].body, ways[0].wait) == (request, 0.123456789)
    assert ways[0].daemon == client._http.headers[DAEMON]


def test_a_stranger_is_told_so_by_the_short_way_too(live: LiveCoordinator) -> None:
    answer = httpx.post(f"{live.url}/v1/assignments/claim", **GOOD, headers={"Authorization": "Bearer fca_nobodys"})
    assert answer.status_code == 401
