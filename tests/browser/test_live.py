"""A page that is open shows what happens, at once, and keeps what somebody opened, typed or chose in it."""

import time
from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.browser.stage import LONG, Stage
from tests.browser.tab import Tab

AT_ONCE_S, LOOKS_EVERY_S = 1.0, 10.0
"""What is promised where a machine has time, and how often that page looks by itself"""
NewTab = Callable[..., Tab]


def test_what_happens_is_seen_within_a_second(tab: NewTab, stage: Stage) -> None:
    """By the stream: what the page's own looks would show takes longer than that, four times in a row."""
    page = tab("viewer").open("/admin/runs")
    row = page.locator(f"#run-{stage.run} .state")
    took = []
    for act, word in ((stage.client.runs.pause, "paused"), (stage.client.runs.resume, "running")) * 2:
        act(stage.run)
        began = time.monotonic()
        expect(row).to_have_text(word)
        took.append(time.monotonic() - began)
    assert min(took) <= AT_ONCE_S, took
    assert sum(took) < LOOKS_EVERY_S, took


def test_a_run_is_watched_from_near(tab: NewTab, stage: Stage) -> None:
    page = tab("viewer").open(f"/admin/runs/{LONG}")
    expect(page.locator("#why + p")).to_contain_text("is under way")
    done = stage.client.runs.get(LONG).rounds_done
    stage.move(stage.run)
    expect(page.locator(".facts .big")).not_to_contain_text(f" {done} of 1000")
    block = page.locator("[id='b-layers.0']")
    block.locator("summary").click()
    expect(block.locator("tbody th").first).to_be_visible()
    page.get_by_text("The visits as a table").click()
    renewed(page)
    renewed(page)
    expect(block.locator("tbody th").first).to_be_visible()  # what was opened stays open
    assert page.locator(".gantt rect").count() > 2
    assert {"amiens", "bergen"} >= set(page.locator("#visits tbody td:nth-child(3)").all_inner_texts()) - {"anyone"}
    for word, axis in (("bytes", "MB sent and received"), ("minutes", "minutes"), ("rounds", "rounds")):
        page.get_by_role("link", name=word, exact=True).click()
        expect(page.locator("figure svg").first).to_contain_text(axis)
    page.get_by_text("The scores as a table").click()
    expect(page.locator("#scores tbody tr").first).to_be_visible()


def look(page: Page) -> None:
    """As whoever comes back to a tab: a page that is seen again looks at once."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def renewed(page: Page) -> None:
    page.locator("#pulse").evaluate("pulse => { pulse.textContent = '' }")
    look(page)
    expect(page.locator("#pulse")).to_contain_text("live")


def test_what_is_typed_stays(tab: NewTab, stage: Stage) -> None:
    page = tab("operator").open(f"/admin/runs/{LONG}")
    page.locator("#a-back summary").click()
    page.get_by_label("rounds, or best").fill("17")
    renewed(page)
    assert page.get_by_label("rounds, or best").input_value() == "17"
    expect(page.get_by_label("rounds, or best")).to_be_focused()


def test_a_coordinator_that_is_away_is_told_of(tab: NewTab) -> None:
    here = tab("viewer")
    page = here.open("/admin")
    expect(page.locator("#pulse")).to_contain_text("live")
    here.offline(True)
    expect(page.locator("#pulse")).to_contain_text("does not answer")
    assert "What is shown is of" in page.locator("#said").inner_text()
    here.offline(False)
    expect(page.locator("#pulse")).to_contain_text("live")
    assert page.locator("#said").inner_text() == "The coordinator answers again."
