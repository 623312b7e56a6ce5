"""Every route of the application, and who may use it. A route that is not in the table fails the test."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from tests.support.browser import browser, logged_in
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, fresh, start_run, wire

CALLERS = ("nobody", "agent", "other agent", "revoked agent", "viewer", "operator", "owner")
# What each caller gets of a route of this kind: in, or the status of the refusal.
KINDS: dict[str, tuple[str, ...]] = {
    "open": ("in",) * 7,
    "agent": ("401", "in", "in", "403", "401", "401", "401"),
    # The assignment of another agent is not there, or not held: said only to a good body.
    "holder": ("401", "in", "in", "403", "401", "401", "401"),
    "viewer": ("401", "401", "401", "401", "in", "in", "in"),
    "operator": ("401", "401", "401", "401", "403", "in", "in"),
    "owner": ("401", "401", "401", "401", "403", "403", "in"),
    # Not by a key, but by the cookie of a browser that is logged in, or has the form.
    "login": ("401", "401", "401", "401", "in", "in", "in"),
    "form": ("403",) * 7,
    "login operator": ("401", "401", "401", "401", "403", "in", "in"),
    "login and form": ("401", "401", "401", "401", "403", "403", "403"),
}
TABLE = {
    "GET /openapi.json": "open", "HEAD /openapi.json": "open", "GET /docs": "open", "GET /": "open",
    "GET /docs/files/{name}": "open", "GET /admin/files/{name}": "open",
    "GET /v1/health": "open", "GET /v1/health/ready": "open", "GET /v1/key": "open", "POST /v1/agents": "open",
    "GET /v1/agents/me": "agent", "PUT /v1/agents/me/readiness": "agent", "POST /v1/agents/me/key": "agent",
    "GET /v1/runs/{run}/files/{name}": "agent", "POST /v1/assignments/claim": "agent",
    "GET /v1/assignments/{assignment_id}": "holder", "POST /v1/assignments/{assignment_id}/renew": "holder",
    "POST /v1/assignments/{assignment_id}/return": "holder", "GET /v1/assignments/{assignment_id}/shards/{digest}": "holder",
    "GET /v1/assignments/{assignment_id}/upload/{digest}": "holder", "PUT /v1/assignments/{assignment_id}/upload/{digest}": "holder",
    "POST /v1/assignments/{assignment_id}/delta": "holder",
    "GET /metrics": "viewer", "GET /v1/status": "viewer", "GET /v1/agents": "viewer", "GET /v1/exposure": "viewer", "POST /v1/plan": "viewer",
    "GET /v1/models": "viewer", "GET /v1/models/{name}": "viewer", "GET /v1/runs": "viewer", "GET /v1/runs/{run}": "viewer",
    "GET /v1/runs/{run}/assignments": "viewer", "GET /v1/runs/{run}/readiness": "viewer", "GET /v1/runs/{run}/rounds": "viewer",
    "GET /v1/runs/{run}/traffic": "viewer", "GET /v1/runs/{run}/explanation": "viewer", "GET /v1/runs/{run}/evaluations": "viewer",
    "GET /v1/runs/{run}/evaluations/{after_rounds}/labels": "viewer",
    "GET /v1/runs/{run}/blocks": "viewer", "GET /v1/runs/{run}/blocks/{block}/versions": "viewer", "GET /v1/runs/{run}/timeline": "viewer",
    "GET /v1/runs/{run}/series": "viewer", "GET /v1/runs/{run}/exports": "viewer",
    "GET /v1/agents/{name}/visits": "viewer", "GET /v1/events": "viewer", "GET /v1/events/stream": "viewer", "GET /v1/agents/{name}": "viewer",
    "GET /v1/runs/{run}/provenance": "viewer", "GET /v1/runs/{run}/exports/{export_id}": "viewer",
    "GET /v1/operators/me": "viewer", "GET /v1/audit": "viewer", "POST /v1/operators/me/rotate": "viewer",
    "POST /v1/agents/{name}/revoke": "operator", "POST /v1/agents/{name}/release": "operator", "POST /v1/agents/{name}/rename": "operator",
    "POST /v1/models": "operator", "PUT /v1/held-out/{digest}": "operator",
    "POST /v1/runs": "operator", "POST /v1/runs/{run}/anchor": "operator", "POST /v1/runs/{run}/start": "operator", "POST /v1/runs/{run}/pause": "operator",
    "POST /v1/runs/{run}/resume": "operator", "POST /v1/runs/{run}/cancel": "operator", "POST /v1/runs/{run}/exports": "operator",
    "POST /v1/runs/{run}/delete": "operator", "POST /v1/models/{name}/delete": "operator", "POST /v1/agents/{name}/delete": "operator",
    "POST /v1/runs/{run}/rollback": "operator", "POST /v1/runs/{run}/without": "operator",
    "GET /v1/runs/{run}/exports/{export_id}/{name}": "operator",
    "GET /v1/model-uploads": "viewer", "GET /v1/model-uploads/{upload_id}": "viewer", "POST /v1/model-uploads": "operator",
    "PUT /v1/model-uploads/{upload_id}/{digest}": "operator", "POST /v1/model-uploads/{upload_id}/add": "operator",
    "POST /v1/model-uploads/{upload_id}/delete": "operator", "GET /v1/held-out": "viewer", "POST /v1/held-out/{digest}/delete": "operator",
    "POST /v1/runs/{run}/exports/{export_id}/delete": "operator",
    "POST /v1/enrolment-tokens": "owner", "GET /v1/enrolment-tokens": "owner",
    "POST /v1/enrolment-tokens/{token_id}/withdraw": "owner", "POST /v1/agents/{name}/reissue": "owner", "GET /v1/operators": "owner", "POST /v1/operators": "owner",
    "POST /v1/operators/{name}/rotate": "owner", "POST /v1/operators/{name}/revoke": "owner",
    "GET /admin": "open", "POST /admin": "form", "GET /admin/live": "login", "GET /admin/stream": "login", "POST /admin/logout": "login and form",
    "GET /admin/runs": "login", "GET /admin/runs/{run}": "login", "GET /admin/runs/{run}/blocks/{block}": "login",
    "GET /admin/runs/{run}/run.yaml": "login", "GET /admin/runs/{run}/exports/{export_id}/{name}": "login operator",
    "GET /admin/agents": "login", "GET /admin/agents/{name}": "login", "GET /admin/models": "login", "GET /admin/events": "login",
    "GET /admin/audit": "login", "GET /admin/audit.jsonl": "login", "GET /admin/events.jsonl": "login", "GET /admin/compare": "login",
    "POST /admin/runs/{run}/start": "login and form", "POST /admin/runs/{run}/pause": "login and form",
    "POST /admin/runs/{run}/resume": "login and form", "POST /admin/runs/{run}/cancel": "login and form",
    "POST /admin/runs/{run}/exports/{export_id}/delete": "login and form", "POST /admin/held-out/{digest}/delete": "login and form",
    "POST /admin/model-uploads/{upload_id}/delete": "login and form",
    "POST /admin/runs/{run}/delete": "login and form", "POST /admin/agents/{name}/delete": "login and form",
    "POST /admin/models": "login and form", "POST /admin/models/{name}/delete": "login and form",
    "POST /admin/runs/{run}/rollback": "login and form", "POST /admin/runs/{run}/export": "login and form",
    "POST /admin/agents/{name}/release": "login and form", "POST /admin/agents/{name}/rename": "login and form", "POST /admin/agents/{name}/revoke": "login and form",
    "POST /admin/agents/{name}/reissue": "login and form", "POST /admin/tokens": "login and form",
}  # fmt: skip


class Party(NamedTuple):
    """Everybody who may knock, each with what he has: a key, a cookie, both."""

    callers: dict[str, httpx.Client]
    assignment: str


def walk(routes: Iterable[Any], prefix: str = "") -> Iterator[str]:
    """Method and path of everything that the application answers, mounted and included parts too."""
    for route in routes:
        if (inner := getattr(route, "original_router", None)) is not None:
            yield from walk(inner.routes, prefix + route.include_context.prefix)
        elif (mounted := getattr(route, "routes", None)) is not None:
            yield from walk(mounted, prefix + route.path)
        else:
            yield from (f"{method} {prefix}{route.path}" for method in route.methods)


@pytest.fixture
def party(live: LiveCoordinator, model: str) -> Party:
    agent, other, revoked = Hand(live), Hand(live), Hand(live)
    live.operator.post(f"/agents/{revoked.name}/revoke")
    assignment = agent.take(start_run(live, model, [agent]))
    callers = {"nobody": browser(live), "agent": agent.http, "other agent": other.http, "revoked agent": revoked.http}
    for role in ("viewer", "operator", "owner"):
        key = live.operator.post("/operators", {"name": fresh(role), "role": role})["key"]
        callers[role] = wire(live, key)
        callers[role].cookies = logged_in(live, key).cookies
    return Party(callers, assignment.assignment_id)


def knock(caller: httpx.Client, live: LiveCoordinator, route: str, assignment: str) -> str:
    """Ask with a body that is never right: who is let in is told so, and nothing is done."""
    method, _, path = route.partition(" ")
    for name, value in {
        "assignment_id": assignment,
        "digest": "0" * 64,
        "token_id": f"tok_{'0' * 16}",
        "upload_id": f"upl_{'0' * 16}",
        "export_id": f"exp_{'0' * 16}",
    }.items():
        path = path.replace(f"{{{name}}}", value)
    for name in ("run", "name", "block"):
        path = path.replace(f"{{{name}}}", "no-such")
    body = b"{" if method in ("POST", "PUT") else None
    kind = "application/x-www-form-urlencoded" if path.startswith("/admin") else "application/json"
    with caller.stream(method, live.url + path, content=body, headers={"Content-Type": kind}, follow_redirects=False) as answer:
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            return "in"  # it does not end
        answer.read()
    assert answer.status_code < 500, f"{route}: {answer.text}"
    # Whoever holds the assignment is told that it has no such shard.
    return str(answer.status_code) if answer.status_code in (401, 403) and "not_in_manifest" not in answer.text else "in"


def test_the_table_has_every_route_and_no_other(live: LiveCoordinator) -> None:
    assert set(walk(live.app.routes)) == set(TABLE), "say in TABLE who may use it"


def test_everybody_gets_what_the_table_says(live: LiveCoordinator, party: Party) -> None:
    # It needs no body, and the key is another afterwards.
    last = "POST /v1/agents/me/key"
    order = [*(route for route in TABLE if route != last), last]
    got = {route: tuple(knock(party.callers[c], live, route, party.assignment) for c in CALLERS) for route in order}
    assert {route: got[route] for route, kind in TABLE.items() if got[route] != KINDS[kind]} == {}


GOOD: dict[str, dict[str, Any]] = {
    "renew": {"attempt": 1},
    "return": {"attempt": 1, "reason": "stopping"},
    "delta": {"attempt": 1, "digest": "0" * 64, "metrics": dict.fromkeys(("steps", "rows", "tokens", "loss_first", "loss_last", "seconds", "tokens_per_s"), 1)},
}  # fmt: skip


def test_one_agent_has_nothing_of_the_assignment_of_another(live: LiveCoordinator, party: Party) -> None:
    for route in (route for route, kind in TABLE.items() if kind == "holder"):
        method, _, path = route.partition(" ")
        filled = path.replace("{assignment_id}", party.assignment).replace("{digest}", "0" * 64)
        body = GOOD.get(path.rpartition("/")[2])
        answer = party.callers["other agent"].request(method, live.url + filled, json=body)
        assert (answer.status_code, answer.json()["code"]) in ((404, "not_found"), (409, "lease_lost")), route
    assert party.callers["agent"].get(f"/assignments/{party.assignment}").json()["state"] == "leased"


def test_a_cookie_opens_nothing_under_v1(live: LiveCoordinator, party: Party) -> None:
    only = browser(live)
    only.cookies = party.callers["owner"].cookies
    wrong = [
        r
        for r, kind in TABLE.items()
        if r.split()[1].startswith("/v1") and kind != "open" and knock(only, live, r, party.assignment) != "401"
    ]
    assert wrong == []


def test_the_body_of_a_stranger_is_not_read(live: LiveCoordinator) -> None:
    """He is told so at once, however much he has announced."""
    for route in (route for route, kind in TABLE.items() if "/v1/" in route and kind != "open" and route.split()[0] in ("POST", "PUT")):
        method, _, path = route.partition(" ")
        with httpx.Client(base_url=live.url, verify=False, timeout=5) as stranger:
            answer = stranger.request(method, path.replace("{", "").replace("}", ""), content=endless())
            assert answer.status_code == 401, route


def endless() -> Iterator[bytes]:
    """A body that is announced and never comes to its end: the answer must not wait for it."""
    yield b"["
    for _ in range(64):
        yield b"[]," * 1000
