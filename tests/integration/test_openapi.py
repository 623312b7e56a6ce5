"""The description of the API is whole, and what is not part of it is answered in the form of all errors."""

from typing import Any

import pytest

from fedcybgd.shared.contract.words import ErrorBody
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, last_visit, operator, refused, start_run, wire

BYTES = [{"application/octet-stream"}, {"text/event-stream"}]


def operations(live: LiveCoordinator) -> list[tuple[str, dict[str, Any]]]:
    paths = wire(live).get(f"{live.url}/openapi.json").json()["paths"]
    return [(f"{method} {path}", operation) for path, item in paths.items() for method, operation in item.items()]


def schema_of(response: dict[str, Any]) -> str:
    schema = response.get("content", {}).get("application/json", {}).get("schema", {})
    return str(schema.get("$ref") or schema.get("items", {}).get("$ref") or "").rpartition("/")[2]


def test_every_route_has_a_summary_a_description_and_a_tag(live: LiveCoordinator) -> None:
    found = operations(live)
    assert len(found) > 25
    for name, operation in found:
        assert operation.get("summary"), name
        assert operation.get("description"), name
        assert operation.get("tags"), name
    ids = [operation["operationId"] for _, operation in found]
    assert len(set(ids)) == len(ids)


def test_every_route_says_what_it_answers(live: LiveCoordinator) -> None:
    for name, operation in operations(live):
        good = {status: r for status, r in operation["responses"].items() if status.startswith("2")}
        assert good, name
        for status, response in good.items():
            is_bytes = set(response.get("content", {})) in BYTES
            assert status in ("204", "206") or is_bytes or schema_of(response), (name, status)


def test_every_route_says_which_errors_it_answers(live: LiveCoordinator) -> None:
    for name, operation in operations(live):
        bad = {status: r for status, r in operation["responses"].items() if status.startswith(("4", "5"))}
        assert bad, name
        for status, response in bad.items():
            if status == "416":  # HTTP's own: its answer is the header Content-Range
                continue
            assert schema_of(response) == ErrorBody.__name__, (name, status)
        if not name.endswith(("/v1/health", "/v1/health/ready", "/v1/key", "post /v1/agents")):
            assert "401" in bad, name
        if "{" in name:
            assert "404" in bad or "upload" in name or "held-out" in name, name
        if operation.get("requestBody") or any(p["in"] != "header" for p in operation.get("parameters", [])):
            assert "422" in bad, name


def test_the_description_is_openapi_3_and_names_all_messages(live: LiveCoordinator) -> None:
    document = wire(live).get(f"{live.url}/openapi.json").json()
    assert document["openapi"].startswith("3.")
    assert {"LeasedAssignment", "DeltaReceipt", "ErrorBody", "RunFile", "RunView", "StatusView"} <= document["components"]["schemas"].keys()
    assert wire(live).get(f"{live.url}/docs").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"), ("GET", "/nothing", 404, "not_found"), ("DELETE", "/v1/runs", 405, "method_not_allowed"),
        ("POST", "/v1/health", 405, "method_not_allowed"), ("GET", "/v2/health", 426, "version_unsupported"),
    ],
)  # fmt: skip
def test_what_there_is_not_is_answered_like_all_errors(live: LiveCoordinator, method: str, path: str, status: int, code: str) -> None:
    refused(wire(live).request(method, live.url + path), status, code)


def test_health_needs_no_key(live: LiveCoordinator) -> None:
    answer = wire(live).get("/health").json()
    assert answer["status"] == "ok"
    assert answer["version"]


def test_the_status_shows_all_that_goes_on(live: LiveCoordinator, model: str, hand: Hand) -> None:
    run = start_run(live, model, [hand])
    assignment = hand.take(run)
    hand.renew(assignment, phase="training", step=2, steps=10, loss=0.5)
    hand.delta(assignment)
    status = operator(live).get("/status").json()
    summary = next(r for r in status["runs"] if r["name"] == run)
    assert (summary["state"], summary["rounds_done"], summary["rounds_total"], summary["model"]) == ("running", 0, 2, model)
    agent = next(a for a in live.operator.every("/agents") if a["name"] == hand.name)
    assert (agent["state"], agent["last_error"]) == ("active", None)
    assert status["agents_by_state"]["active"] > 0
    assert status["training"] >= len(status["leases"]) > 0
    lease = next(x for x in status["leases"] if x["agent"] == hand.name)
    assert (lease["run"], lease["block"], lease["attempt"], lease["progress"]["step"]) == (run, "layers.0", 1, 2)
    assert status["bytes"]["down"] > 0
    assert "done" not in status["jobs"], "what is done is history"
    hand.give_back(assignment, "other", "a reason to remember")
    # Another test's lease may lapse in the same moment.
    said = next(e for e in operator(live).get("/status").json()["last_errors"] if "a reason to remember" in e["message"])
    assert (said["level"], said["code"]) == ("warning", "other")
    assert last_visit(live, run)["reason"] == "other"
    assert not [x for x in operator(live).get("/status").json()["leases"] if x["agent"] == hand.name]
