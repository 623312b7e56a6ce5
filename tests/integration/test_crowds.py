"""Two hundred writers of every kind at once: all are answered, and whether the coordinator is up is answered whatever they do."""

import asyncio
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from safetensors.torch import save

from fedcybgd.coordinator.api.route import Access, DatabaseRoute
from fedcybgd.coordinator.app import ROUTERS
from fedcybgd.coordinator.dashboard import pages
from fedcybgd.coordinator.db.base import Database
from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.words import API
from tests.support import uploading as uploads
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import METRICS, Hand, fresh, run_file, start_run, wire

pytestmark = pytest.mark.database_decides

CROWD = 200
Call = tuple[str, str, dict[str, Any]]


ROUTES = [route for router in (*ROUTERS, pages.router) for route in router.routes if isinstance(route, APIRoute)]


def writing() -> set[str]:
    """All routes of agents and operators that may write: those with a session for it, and those that are asked for more than to read."""
    return {
        f"{method} {route.path}"
        for route in ROUTES if not route.path.startswith(pages.router.prefix)
        for method in route.methods or ()
        if method != "GET" or (isinstance(route, DatabaseRoute) and route.access is Access.WRITE)
    }  # fmt: skip


def all_kinds(live: LiveCoordinator, model: str) -> dict[str, Call]:
    """Route → a request to it, each of which gets as far as its transaction."""
    hand, rotating, owner = Hand(live), Hand(live), fresh("owner")
    # Nobody has more than a hundred connections with one key.
    keys = itertools.cycle([live.operator.post("/operators", {"name": f"{owner}-{n}", "role": "owner"})["key"] for n in range(4)])
    rotated = live.operator.post("/operators", {"name": f"{owner}-rotated", "role": "owner"})["key"]
    run = start_run(live, model, [hand])
    draft = live.create_run(run_file(model, [hand]))["id"]
    held = hand.take(run)
    delta = save(hand.delta(held))
    place = f"/assignments/{held.assignment_id}"
    submission = {"attempt": held.attempt, "digest": digest_of(delta), "metrics": METRICS.model_dump(mode="json")}
    rows = b'{"text": "a", "label": 0}\n'
    config = b'{"model_type": "bert"}'
    uploading = uploads.asked(fresh("uploaded"), {"config.json": config, "tokenizer.json": b"{}", "model.safetensors": b"weights"})
    upload = f"/model-uploads/{live.operator.post('/model-uploads', uploading)['id']}"
    given = {
        "POST /enrolment-tokens": ("/enrolment-tokens", next(keys), {"json": {}}),
        "POST /agents": ("/agents", "", {"json": {"token": "fct_" + "x" * 43, "name": fresh("agent")}}),
        "GET /agents/me": ("/agents/me", hand.key, {}),
        "PUT /agents/me/readiness": ("/agents/me/readiness", hand.key, {"json": {"runs": []}}),
        "POST /agents/me/key": ("/agents/me/key", rotating.key, {}),
        "POST /enrolment-tokens/{token_id}/withdraw": ("/enrolment-tokens/tok_0000000000000000/withdraw", next(keys), {}),
        "POST /operators": ("/operators", next(keys), {"json": {"name": f"{owner}-0", "role": "viewer"}}),
        "POST /operators/me/rotate": ("/operators/me/rotate", rotated, {"json": {}}),
        "POST /operators/{name}/rotate": ("/operators/nobody/rotate", next(keys), {"json": {}}),
        "POST /operators/{name}/revoke": ("/operators/nobody/revoke", next(keys), {}),
        "POST /agents/{name}/reissue": ("/agents/nobody/reissue", next(keys), {"json": {}}),
        "POST /agents/{name}/revoke": ("/agents/nobody/revoke", next(keys), {}),
        "POST /agents/{name}/rename": ("/agents/nobody/rename", next(keys), {"json": {"name": "somebody"}}),
        "POST /agents/{name}/release": ("/agents/nobody/release", next(keys), {}),
        "POST /assignments/claim": ("/assignments/claim?wait=0", hand.key, {"json": {"runs": ["nothing"]}}),
        "POST /assignments/{assignment_id}/renew": (f"{place}/renew", hand.key, {"json": {"attempt": held.attempt}}),
        "POST /assignments/{assignment_id}/return": (f"{place}/return", hand.key, {"json": {"attempt": 9, "reason": "other"}}),
        "PUT /assignments/{assignment_id}/upload/{digest}": (f"{place}/upload/{digest_of(delta)}", hand.key, {"content": delta}),
        "POST /assignments/{assignment_id}/delta": (f"{place}/delta", hand.key, {"json": {**submission, "attempt": 9}}),
        "POST /models": ("/models", next(keys), {"json": {"name": model, "source": "/nowhere"}}),
        "POST /plan": ("/plan", next(keys), {"json": run_file(model, [hand])}),
        "POST /runs": ("/runs", next(keys), {"json": {**run_file(model, [hand]), "name": live.operator.get(f"/runs/{run}")["name"]}}),
        "POST /runs/{run}/start": (f"/runs/{run}/start", next(keys), {}),
        "POST /runs/{run}/pause": (f"/runs/{draft}/pause", next(keys), {}),
        "POST /runs/{run}/resume": (f"/runs/{draft}/resume", next(keys), {}),
        "POST /runs/{run}/cancel": (f"/runs/{draft}/cancel", next(keys), {}),
        "POST /runs/{run}/delete": (f"/runs/{run}/delete", next(keys), {}),
        "POST /models/{name}/delete": (f"/models/{model}/delete", next(keys), {}),
        "POST /agents/{name}/delete": (f"/agents/{hand.name}/delete", next(keys), {}),
        "POST /runs/{run}/rollback": (f"/runs/{draft}/rollback", next(keys), {"json": {"after_rounds": 9}}),
        "POST /runs/{run}/without": (f"/runs/{draft}/without", next(keys), {"json": {"agent": "nobody"}}),
        "POST /runs/{run}/anchor": (f"/runs/{draft}/anchor", next(keys), {}),
        "POST /runs/{run}/exports": (f"/runs/{run}/exports", next(keys), {}),
        "GET /runs/{run}/exports/{export_id}/{name}": (f"/runs/{run}/exports/job_0000000000000000/x", next(keys), {}),
        "GET /runs/{run}/provenance": (f"/runs/{run}/provenance", next(keys), {}),
        "PUT /held-out/{digest}": (f"/held-out/{digest_of(rows)}?name=rows.jsonl", next(keys), {"content": rows}),
        "POST /held-out/{digest}/delete": (f"/held-out/{digest_of(b'nothing')}/delete", next(keys), {}),
        "POST /runs/{run}/exports/{export_id}/delete": (f"/runs/{run}/exports/job_0000000000000000/delete", next(keys), {}),
        "POST /model-uploads": ("/model-uploads", next(keys), {"json": uploading}),
        "PUT /model-uploads/{upload_id}/{digest}": (f"{upload}/{digest_of(config)}", next(keys), {"content": config}),
        "POST /model-uploads/{upload_id}/add": (f"{upload}/add", next(keys), {}),
        "POST /model-uploads/{upload_id}/delete": ("/model-uploads/mup_0000000000000000/delete", next(keys), {}),
    }  # fmt: skip
    return {
        route: (route.split()[0], path, {"headers": {"Authorization": f"Bearer {key}"} if key else {}, **more})
        for route, (path, key, more) in given.items()
    }


async def crowd(live: LiveCoordinator, calls: list[Call]) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=live.url + API, timeout=60, limits=limits, verify=False) as client:
        return await asyncio.gather(*(client.request(method, path, **more) for method, path, more in calls))


def test_two_hundred_writers_of_every_kind_at_once_are_all_answered(live: LiveCoordinator, model: str) -> None:
    kinds = all_kinds(live, model)
    assert set(kinds) == writing(), "a new kind of writer belongs here"
    names = list(itertools.islice(itertools.cycle(sorted(kinds)), CROWD))
    answers = asyncio.run(crowd(live, [kinds[name] for name in names]))
    failed = {(name, answer.status_code, answer.text) for name, answer in zip(names, answers, strict=True) if answer.status_code >= 500}
    assert failed == set()
    assert wire(live).get("/health").status_code == 200


def test_two_hundred_of_one_kind_at_once_are_all_answered(live: LiveCoordinator, model: str) -> None:
    hands = [Hand(live) for _ in range(4)]
    calls: list[Call] = [("GET", "/agents/me", {"headers": {"Authorization": f"Bearer {hand.key}"}}) for hand in hands]
    assert {a.status_code for a in asyncio.run(crowd(live, calls * (CROWD // len(calls))))} == {200}


@contextmanager
def stuck(database: Database, assignment_id: str) -> Iterator[None]:
    """Nobody else writes (SQLite), or nobody to this assignment (PostgreSQL)."""
    from fedcybgd.coordinator.services.path import lease

    with database.transaction() as session:
        lease.locked(session, assignment_id)
        yield


def test_whether_it_is_up_is_answered_while_every_thread_waits(live: LiveCoordinator, model: str) -> None:
    hand = Hand(live)
    run = start_run(live, model, [hand])
    held: LeasedAssignment = hand.take(run)
    headers = {"Authorization": f"Bearer {hand.key}"}
    renew = ("POST", f"/assignments/{held.assignment_id}/renew", {"headers": headers, "json": {"attempt": held.attempt}})
    answers: list[httpx.Response] = []
    with stuck(live.database, held.assignment_id):
        waiting = threading.Thread(target=lambda: answers.extend(asyncio.run(crowd(live, [renew] * (2 * live.settings.threads)))))
        waiting.start()
        wait_for(lambda: not live.free_threads(), limit=20)
        for _ in range(10):
            assert wire(live).get("/health", timeout=5).json()["status"] == "ok"
        assert not live.free_threads()
    waiting.join(60)
    assert [a.status_code for a in answers] == [200] * 2 * live.settings.threads


def test_a_route_that_waits_cannot_ask_for_a_session() -> None:
    from fastapi import APIRouter

    from fedcybgd.coordinator.api.route import WriteDep

    async def waits(session: WriteDep) -> None: ...

    with pytest.raises(TypeError, match="coroutine"):
        APIRouter(route_class=DatabaseRoute).post("/")(waits)


def test_a_router_without_the_route_class_cannot_hand_out_a_session() -> None:
    from fastapi import APIRouter
    from fastapi.exceptions import FastAPIError

    from fedcybgd.coordinator.api.route import ReadDep

    def old(session: ReadDep) -> None: ...

    with pytest.raises(FastAPIError):
        APIRouter().get("/")(old)


def test_no_dependency_of_a_route_stays_open_while_it_runs() -> None:
    """What yields would be opened in one job of the thread pool and closed in another."""
    import inspect

    def calls(dependant: Any) -> Iterator[Any]:
        yield dependant.call
        for inner in dependant.dependencies:
            yield from calls(inner)

    assert len(ROUTES) > 25
    yielding = {
        f"{route.path}: {call.__qualname__}" for route in ROUTES for call in calls(route.dependant)
        if inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call)
    }  # fmt: skip
    assert yielding == set()
