"""What operators do with a mouse and a keyboard, and that it is done."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from fedcybgd.agent.client import Client
from fedcybgd.coordinator.db.models import Agent
from fedcybgd.shared.contract.agents import DeviceInfo, EnrolRequest
from tests.browser.stage import LONG, Stage
from tests.browser.tab import Tab
from tests.support.models import tiny_bert
from tests.support.processes import wait_for

NewTab = Callable[..., Tab]


def press(page: Page, name: str, said: str = "") -> None:
    """A button; `said` is what the page then tells."""
    page.get_by_role("button", name=name, exact=True).click()
    if said:
        expect(page.locator(".did")).to_contain_text(said)


def sure(page: Page, name: str, button: str) -> None:
    """One that asks first."""
    page.locator("summary", has_text=name).click()
    press(page, button)


def badge(page: Page, word: str) -> None:
    expect(page.locator("h1 .state")).to_have_text(word)


def test_a_run_is_steered_from_its_page(tab: NewTab, stage: Stage) -> None:
    run = stage.create("steered")
    page = tab("operator").open(f"/admin/runs/{run}")
    badge(page, "draft")
    press(page, "Start", "Started.")
    badge(page, "running")
    stage.move(run)
    expect(page.locator(".facts .big")).to_contain_text(re.compile(r"[1-9]\d* of 1000"))  # it came by itself; two may have closed by then
    press(page, "Pause", "Paused.")
    badge(page, "paused")
    press(page, "Resume", "It goes on.")
    badge(page, "running")
    page.locator("#a-back summary").click()
    page.get_by_label("rounds, or best").fill("0")
    press(page, "Take it back", "It is being taken back")
    expect(page.locator("#why + p")).to_contain_text("after 0 rounds", timeout=30_000)
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    sure(page, "Cancel", "Cancel steered")
    expect(page.locator(".did")).to_contain_text("Cancelled.")
    badge(page, "cancelled")
    assert stage.client.runs.get(run).state == "cancelled"
    sure(page, "Delete", "Delete steered")
    expect(page).to_have_url(f"{stage.url}/admin/runs?did=deleted")
    assert run not in {each.id for each in stage.client.runs.list()}


def test_a_model_is_put_together_and_taken_away(tab: NewTab, stage: Stage, tmp_path: Path) -> None:
    page = tab("operator").open(f"/admin/runs/{stage.ended}")
    press(page, "Export", "being put together")
    expect(page.locator(".files a").first).to_be_visible(timeout=30_000)
    names = page.locator(".files a").all_inner_texts()
    assert {"model.safetensors", "config.json", "README.md"} <= set(names)
    with page.expect_download() as got:
        page.get_by_role("link", name="config.json", exact=True).click()
    assert got.value.suggested_filename == "config.json"
    assert '"model_type": "bert"' in got.value.path().read_text()
    with page.expect_download() as got:
        page.get_by_role("link", name="Run file").click()
    assert got.value.suggested_filename == "short.yaml"
    assert got.value.path().read_text() == page.locator("#run-file pre").text_content()
    page.locator("#run-file summary").click()
    press(page, "Copy")
    expect(page.locator("#said")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == got.value.path().read_text()


def test_models_are_added_and_deleted(tab: NewTab, stage: Stage, tmp_path: Path) -> None:
    page = tab("operator").open("/admin/models")
    for source, name, word in ((tiny_bert(tmp_path / "other"), "other", "ready"), (tmp_path / "nothing", "nothing", "failed")):
        page.get_by_text("Add a model").click()
        page.get_by_label("A directory").fill(str(source))
        page.get_by_label("Name, if").fill(name)
        press(page, "Add", "being split into blocks")
        card = page.locator("article", has=page.get_by_role("heading", name=name))
        expect(card.locator(".state")).to_have_text(word, timeout=30_000)
        card.get_by_text("Delete…").click()
        press(page, f"Delete {name}", "Deleted.")
        expect(card).to_have_count(0)
    assert [model.name for model in stage.client.models.list()] == ["tiny"]


def test_agents_are_let_in_let_out_and_shut_out(tab: NewTab, stage: Stage) -> None:
    page = tab().open("/admin/agents")
    press(page, "Make a token for a new agent")
    token = page.locator(".secret").inner_text()
    made = Client(stage.url).enrol(EnrolRequest(token=token, name="calais", device=DeviceInfo(), version="test"))
    with stage.live.database.transaction() as session:
        session.get_one(Agent, made.agent_id).strikes = 2
    page.goto("/admin/agents?state=enrolled")
    page.get_by_role("link", name="calais").click()
    press(page, "Forget its strikes", "Released")
    sure(page, "Another key", "Give it another key")
    assert page.locator(".secret").inner_text() not in (token, "")
    page.goto("/admin/agents/calais")
    sure(page, "Revoke", "Revoke calais")
    badge(page, "revoked")
    assert made.key not in page.content()
    sure(page, "Delete", "Delete calais")
    expect(page.locator(".did")).to_contain_text("Deleted.")
    assert {agent.name for agent in stage.client.agents.list()} == {"amiens", "bergen"}


def test_runs_are_compared(tab: NewTab, stage: Stage) -> None:
    page = tab("viewer").open("/admin/runs")
    for name in ("short", LONG):
        page.get_by_label(f"compare {name}").check()
    press(page, "Compare the chosen ones")
    assert set(page.locator("tbody th").all_inner_texts()) == {"short", LONG}
    for word, axis in (("rounds", "rounds"), ("minutes", "minutes"), ("bytes", "MB sent and received")):
        page.get_by_role("link", name=word, exact=True).click()
        expect(page.get_by_role("link", name=word, exact=True)).to_have_attribute("aria-current", "true")
        expect(page.locator("figure svg").first).to_contain_text(axis)
    assert [each.strip() for each in page.locator(".legend li").all_inner_texts()] == page.locator("tbody th").all_inner_texts()


def test_events_and_acts_are_looked_through(tab: NewTab, stage: Stage) -> None:
    page = tab("viewer").open("/admin/events")
    page.get_by_label("run", exact=True).fill("short")
    page.get_by_label("level").select_option("info")
    press(page, "Show")
    assert set(page.locator("tbody td:nth-child(4)").all_inner_texts()) == {"short"}
    page.get_by_role("link", name="run_completed").first.click()
    assert page.get_by_label("code").input_value() == "run_completed"
    assert set(page.locator("tbody td:nth-child(3)").all_inner_texts()) == {"run_completed"}
    page.get_by_label("code").fill("of_no_such_kind")
    press(page, "Show")
    expect(page.locator(".empty")).to_be_visible()
    page.get_by_role("link", name="Audit").click()
    page.get_by_label("who").fill("viewer")
    press(page, "Show")
    assert {each.split()[0] for each in page.locator("tbody td:nth-child(3)").all_inner_texts()} == {"viewer"}


def test_a_viewer_finds_nothing_to_act_with(tab: NewTab) -> None:
    here = tab("viewer")
    for path in ("/admin", f"/admin/runs/{LONG}", "/admin/runs/short", "/admin/agents", "/admin/agents/amiens", "/admin/models"):
        page = here.open(path)
        assert page.locator("main h1").count() == 1
        assert page.locator("main form[method=post]").count() == 0, path
        assert page.locator(".files a").count() == 0, path


def test_the_way_in_and_out(tab: NewTab, stage: Stage) -> None:
    here = tab(None)
    here.expected = {401}
    page = here.open("/admin/runs/short")
    for key, told in (("fco_" + "x" * 43, "not the key of an operator"), (stage.keys["viewer"], "")):
        page.get_by_label("Operator's key").fill(key)
        press(page, "Open")
        if told:
            expect(page.get_by_role("alert")).to_contain_text(told)
    expect(page).to_have_url(f"{stage.url}/admin/runs/short")
    expect(page.locator(".who")).to_have_text("viewer (viewer)")
    press(page, "Log out")
    expect(page.get_by_label("Operator's key")).to_be_focused()
    page.go_back()
    expect(page.get_by_label("Operator's key")).to_be_visible()


def test_all_is_done_with_the_keyboard(tab: NewTab, stage: Stage) -> None:
    run = stage.start("by-keys")
    page = tab("operator").open("/admin")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#live")).to_be_focused()
    to(page, "by-keys")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{stage.url}/admin/runs/{run}")
    to(page, "layers.0")
    page.keyboard.press("Enter")
    expect(page.locator("[id='b-layers.0'] table")).to_be_visible()
    to(page, "Cancel…", back=True)
    page.keyboard.press("Enter")
    expect(page.locator("#a-cancel .pop")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#a-cancel .pop")).to_be_hidden()
    expect(page.locator("#a-cancel summary")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    badge(page, "cancelled")
    wait_for(lambda: stage.client.runs.get(run).state == "cancelled")


def to(page: Page, text: str, back: bool = False) -> None:
    """Tab until something with this text has the focus; each thing on the way shows that it has it."""
    for _ in range(60):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        seen = page.evaluate("() => [document.activeElement.innerText || '', getComputedStyle(document.activeElement).outlineStyle]")
        assert seen[1] != "none", f"nothing shows that {seen[0]!r} has the focus"
        if seen[0].strip().startswith(text):
            return
    pytest.fail(f"the keyboard does not reach {text!r}")
