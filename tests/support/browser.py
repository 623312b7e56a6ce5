"""A browser at /admin, without scripts."""

import re

import httpx

from tests.support.live import LiveCoordinator


def browser(live: LiveCoordinator) -> httpx.Client:
    return httpx.Client(base_url=live.url, verify=False, timeout=30)


def sent(client: httpx.Client, path: str = "/admin", **fields: str) -> httpx.Response:
    """Fill the form in that the page shows."""
    found = re.search(r'name="form" value="([0-9a-f]{64})"', client.get("/admin").text)
    assert found
    return client.post(path, data={"form": found[1], **fields})


def logged_in(live: LiveCoordinator, key: str | None = None) -> httpx.Client:
    client = browser(live)
    answer = sent(client, key=key or live.operator_key)
    assert (answer.status_code, answer.headers["location"]) == (303, "/admin")
    return client
