"""A real Chromium at the pages of a real coordinator, and two agents that work when a test says so.

Without Playwright or a Chromium the tests are skipped, and say what is missing.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed: pip install '.[browser]'")

from playwright.sync_api import Browser, expect, sync_playwright

from tests.browser.stage import Stage
from tests.browser.tab import Tab

PROGRAMS = ["chromium", "chromium-browser", "google-chrome"]
PROGRAM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
MISSING = pytest.mark.skip("no Chromium was found: install it (apt-get install chromium), or name it in CHROMIUM")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip


expect.set_options(timeout=20_000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items if PROGRAM is None else []:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(MISSING)


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """Ends with the package: its event loop must not be there for other tests of the process."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def stage(chromium: Browser, tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("stage"), bert)
    yield made
    made.stop()


@pytest.fixture(scope="package")
def tabs(chromium: Browser, stage: Stage) -> Iterator[Callable[[str | None], Tab]]:
    """One a role: each is a browser of its own, and what makes it is most of what a short test costs."""
    made: dict[str | None, Tab] = {}

    def of(role: str | None) -> Tab:
        if role not in made:
            made[role] = Tab(chromium, stage.url, stage.cookies[role] if role else None)
        return made[role]

    yield of
    for one in made.values():
        one.close()


@pytest.fixture
def tab(tabs: Callable[[str | None], Tab]) -> Iterator[Callable[..., Tab]]:
    """The tab of an operator of some role, as after it was opened; in no test has it seen anything that it should not."""
    used: list[Tab] = []

    def of(role: str | None = "owner") -> Tab:
        used.append(tabs(role))
        used[-1].fresh()
        return used[-1]

    yield of
    wrong = [said for one in used for said in one.wrong]
    for one in used:
        one.leave()
    assert wrong == []
