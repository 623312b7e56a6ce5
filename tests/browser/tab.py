"""A tab of a browser that writes down whatever a page should not have done."""

from collections.abc import Sequence
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, ViewportSize

from fedcybgd.coordinator.dashboard.browser import COOKIE

DESK, PHONE = ViewportSize(width=1280, height=900), ViewportSize(width=375, height=700)
WATCH = "addEventListener('securitypolicyviolation', e => console.error('against the policy: ' + e.violatedDirective + ' ' + e.blockedURI))"
GRAVE = ("serious", "critical")
SPREAD = """() => [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1
    && !e.closest('.scroll, figure, nav, pre, .unseen, .skip')).map(e => e.outerHTML.slice(0, 120))"""

TINY = """() => [...document.querySelectorAll('svg text')].filter(t => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().d < 10
    && t.getAttribute('transform') === null).map(t => t.textContent)"""


class Tab:
    """A window of its own browser at the coordinator; `cookie` is that of an operator who is logged in there."""

    def __init__(self, chromium: Browser, url: str, cookie: str | None) -> None:
        self._url, self._context = url, chromium.new_context(base_url=url, viewport=DESK, locale="en-GB")
        self._context.set_default_timeout(20_000)
        self._context.grant_permissions(["clipboard-read", "clipboard-write"])
        self._context.add_init_script(WATCH)
        if cookie:
            self._context.add_cookies([{"name": COOKIE, "value": cookie, "url": url}])
        self._axe = Axe()
        self.wrong: list[str] = []
        self.expected: set[int] = set()
        """statuses of answers that a test asks for"""
        self.page: Page = self._context.new_page()
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.wrong.append(f"{self.page.url}: {error}"))
        self.page.on("request", self._asked)
        self.page.on("response", self._answered)

    def fresh(self) -> None:
        self.wrong, self.expected = [], set()
        self.dark(False)
        self.page.set_viewport_size(DESK)

    def leave(self) -> None:
        """A page that is not looked at any more asks for nothing."""
        self.page.goto("about:blank")

    def _said(self, message: ConsoleMessage) -> None:
        answered = message.text.startswith("Failed to load resource")  # `_answered` knows better
        if message.type in ("error", "warning") and not answered:
            self.wrong.append(f"{self.page.url}: console: {message.text}")

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((self._url + "/", "data:", "about:")):
            self.wrong.append(f"{self.page.url}: it asks another host: {request.url}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400 and response.status not in self.expected:
            self.wrong.append(f"{self.page.url}: {response.status} from {response.url}")

    def open(self, path: str) -> Page:
        self.page.goto(path)
        return self.page

    def dark(self, is_dark: bool = True) -> None:
        self.page.emulate_media(color_scheme="dark" if is_dark else "light")

    def offline(self, is_offline: bool) -> None:
        self._context.set_offline(is_offline)

    def barriers(self, rules: Sequence[str] = ()) -> list[str]:
        """What axe-core calls serious or critical on the page as it is now, by all its rules or some."""
        only = {"runOnly": {"type": "rule", "values": [*rules]}} if rules else {}
        found: list[dict[str, Any]] = self._axe.run(self.page, options={"resultTypes": ["violations"], **only}).response["violations"]
        return [
            f"{each['id']}: {node['html'][:160]} {node['any'][0]['message'] if node['any'] else ''}"
            for each in found
            if each["impact"] in GRAVE
            for node in each["nodes"]
        ]

    def wider_than_a_phone(self) -> list[str]:
        """What makes a reader scroll sideways, also to what a button opens; tables and pictures scroll for themselves."""
        self.page.set_viewport_size(PHONE)
        self.page.evaluate("document.querySelectorAll('details.sure').forEach(each => { each.open = true })")
        wide = self.page.evaluate("document.documentElement.scrollWidth > innerWidth")
        return list(self.page.evaluate(SPREAD)) or ["the page"] if wide else []

    def too_small_on_a_phone(self) -> list[str]:
        """Words of pictures with letters of less than 10 pixels."""
        self.page.set_viewport_size(PHONE)
        return list(self.page.evaluate(TINY))

    def close(self) -> None:
        self._context.close()
