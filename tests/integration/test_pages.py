"""Pages load nothing from elsewhere, run no script that stands in them, and are shown in nobody's frame."""

import re

import httpx
import pytest

from tests.support.live import LiveCoordinator

PAGES = ["/admin", "/docs"]


@pytest.mark.parametrize("path", [*PAGES, "/admin/live", "/admin/files/admin.js", "/openapi.json", "/nothing"])
def test_every_answer_to_a_browser_says_what_is_not_allowed(live: LiveCoordinator, path: str) -> None:
    headings = httpx.get(live.url + path).headers
    policy = dict(rule.strip().partition(" ")[::2] for rule in headings["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert headings["x-content-type-options"] == "nosniff"
    assert headings["x-frame-options"] == "DENY"
    assert headings["referrer-policy"] == "no-referrer"
    assert headings["permissions-policy"]


@pytest.mark.parametrize("path", ["/admin", "/admin/live", "/v1/health", "/v1/status"])
def test_what_changes_or_is_secret_is_not_kept(live: LiveCoordinator, path: str) -> None:
    answer = httpx.get(live.url + path)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", PAGES)
def test_a_page_loads_only_what_this_coordinator_has(live: LiveCoordinator, path: str) -> None:
    page = httpx.get(live.url + path)
    assert page.status_code == 200
    assert not re.findall(r"https?://|style=|<style|\son[a-z]+=|<script>", page.text)
    loaded = re.findall(r'(?:src|href)="(/[^"]+)"', page.text)
    assert len(loaded) >= 1
    for other in loaded:
        found = httpx.get(live.url + other)
        assert found.status_code == 200, other
        assert found.headers["content-type"].split(";")[0] in ("text/css", "text/javascript", "application/json")


def test_no_other_file_is_given(live: LiveCoordinator) -> None:
    for path in (
        "/docs/files/redoc.standalone.js",
        "/docs/files/..%2fcore.py",
        "/admin/files/..%2fpages.py",
        "/admin/files/%2e%2e/pages.py",
    ):
        assert httpx.get(live.url + path).status_code == 404


def test_the_address_alone_leads_to_the_pages(live: LiveCoordinator) -> None:
    answer = httpx.get(live.url, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/admin")
