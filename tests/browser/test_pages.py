"""Every page, for who only looks and who acts: in order, in light and dark, on a phone, and with nothing from elsewhere."""

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.browser.stage import LONG
from tests.browser.tab import Tab

PAGES = {
    "overview": "/admin", "runs": "/admin/runs", "run": f"/admin/runs/{LONG}", "ended": "/admin/runs/short?x=minutes",
    "block": f"/admin/runs/{LONG}/blocks/layers.0", "compare": f"/admin/compare?run={LONG}&run=short", "nothing to compare": "/admin/compare",
    "agents": "/admin/agents", "agent": "/admin/agents/amiens", "models": "/admin/models", "events": "/admin/events", "audit": "/admin/audit",
    "refused": "/admin/runs/nobody",
}  # fmt: skip
COLOURS = ("color-contrast", "link-in-text-block")
"""What may differ between light and dark"""
FEWER = """() => { const seen = new Set(); for (const each of document.querySelectorAll('.opblock'))
    { if (seen.has(each.className)) each.remove(); else seen.add(each.className); } }"""
"""Leaves one operation of each colour."""


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_no_fault(tab: Callable[..., Tab], name: str) -> None:
    here = tab()
    here.expected = {404} if name == "refused" else set()
    here.open(PAGES[name])
    found = here.barriers()
    here.dark()
    found += [f"dark: {each}" for each in here.barriers(COLOURS)]
    found += [f"phone: {each}" for each in here.wider_than_a_phone()]
    found += [f"tiny on a phone: {each}" for each in here.too_small_on_a_phone()]
    assert found == []


def test_the_api_is_shown(tab: Callable[..., Tab]) -> None:
    """By Swagger UI, in colours that everybody can read."""
    here = tab(None)
    page = here.open("/docs")
    page.locator(".opblock").first.wait_for()
    assert page.locator(".opblock").count() > 50
    page.evaluate(FEWER)
    page.locator(".opblock-summary-control").first.click()
    page.locator(".opblock-body").first.wait_for()
    assert here.barriers(COLOURS) == []
    here.dark()
    expect(page.locator("html")).to_have_css("background-color", "rgb(28, 32, 34)")  # Swagger UI's own
    assert here.barriers(COLOURS) == []
