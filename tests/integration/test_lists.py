"""Every list over HTTP is walked page by page; the pages together are the whole list, and a place of another list is refused."""

from typing import Any

import pytest

from fedcybgd.shared.contract.words import NEXT
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, finish, operator, refused, start_run


@pytest.fixture(scope="module")
def done(live: LiveCoordinator, model: str) -> dict[str, str]:
    """A run that is done, one of its blocks and one of its agents: they are looked at only."""
    hands = [Hand(live), Hand(live)]
    name = start_run(live, model, hands)
    finish(live, name, hands)
    return {"run": name, "block": "head", "name": hands[0].name}


PATHS = [
    "/agents",
    "/audit",
    "/enrolment-tokens",
    "/models",
    "/held-out",
    "/model-uploads",
    "/operators",
    "/runs",
    "/exposure",
    "/events",
    "/runs/{run}/blocks",
    "/runs/{run}/blocks/{block}/versions",
    "/runs/{run}/timeline",
    "/runs/{run}/exports",
    "/agents/{name}/visits",
    "/runs/{run}/rounds",
    "/runs/{run}/assignments",
    "/runs/{run}/evaluations",
    "/runs/{run}/traffic",
    "/runs/{run}/readiness",
]


def test_every_list_that_there_is_comes_in_pages(live: LiveCoordinator) -> None:
    paths = live.app.openapi()["paths"]
    listed = {path for path, methods in paths.items() if "get" in methods and is_list(methods["get"])}
    assert listed == {f"/v1{path}" for path in PATHS}
    for path in listed:
        answer = paths[path]["get"]
        assert {"after", "limit"} <= {parameter["name"] for parameter in answer["parameters"]}, path
        assert NEXT in answer["responses"]["200"]["headers"], path


def is_list(operation: Any) -> bool:
    return operation["responses"]["200"].get("content", {}).get("application/json", {}).get("schema", {}).get("type") == "array"


@pytest.mark.parametrize("path", PATHS)
def test_the_pages_are_the_list(live: LiveCoordinator, done: dict[str, str], path: str) -> None:
    path = path.format(**done)
    found: list[Any] = []
    after: dict[str, str] = {}
    while True:
        answer = operator(live).get(path, params={"limit": 2, **after})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()) <= 2
        found += answer.json()
        if NEXT not in answer.headers or len(found) >= 60:  # others fill the lists of everything: some of them is enough
            break
        after = {"after": answer.headers[NEXT]}
    whole = [of_all_times(row) for row in live.operator.every(path)]
    assert len(whole) == len({str(row) for row in whole})
    pages = [of_all_times(row) for row in found]
    newer = whole.index(pages[0]) if pages else 0  # what has come since stands before them
    assert pages == whole[newer : newer + len(pages)]
    assert len(pages) >= min(60, len(whole) - newer)


def of_all_times(row: dict[str, Any]) -> dict[str, Any]:
    """Without what comes of being seen, or not: it changes every few seconds, of those whom other tests have enrolled too."""
    passing = {"last_seen_at", "state"} if "last_seen_at" in row else set[str]()
    return {name: value for name, value in row.items() if name not in passing}


@pytest.mark.parametrize("path", PATHS)
def test_what_is_no_page_is_refused(live: LiveCoordinator, done: dict[str, str], path: str) -> None:
    path = path.format(**done)
    for limit in (0, 1001, "x"):
        refused(operator(live).get(path, params={"limit": limit}), 422, "invalid_request")
    refused(operator(live).get(path, params={"after": "a~b~c~d"}), 422, "cursor_invalid")
    refused(operator(live).get(path, params={"after": "x" * 1001}), 422, "invalid_request")
