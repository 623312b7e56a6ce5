"""What a request must be before anything of it is parsed: who asks, how often, how large, how deep."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.walls.answers import answer_of
from fedcybgd.coordinator.walls.body import Body, check_depth
from fedcybgd.coordinator.walls.connections import neighbourhood
from fedcybgd.coordinator.walls.rates import Buckets
from fedcybgd.coordinator.walls.rules import Door, HowOften, Rule, check_path, rule_for
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.signatures import SIGNATURE_INPUT, TIME
from fedcybgd.shared.host.addresses import is_loopback

Headings = dict[bytes, bytes]
CALLS = "too many calls with this key"


class Shown(Protocol):
    """Who seems to call. What is counted against him, and done for him, waits until he has proved it: else a stranger spends it."""

    @property
    def caller(self) -> str: ...

    @property
    def prove(self) -> Callable[[bytes | None], None] | None:
        """Looks at the body, or None where it streams, and raises `FedError`; None: the key was the proof."""


Recognise = Callable[[Scope], Awaitable[Shown | None]]
"""Who calls, by a good key; None: somebody who was shut out, whom the route tells so. Raises `FedError` where there is none."""
TRIED_AT_ONCE = 2
"""Secrets that are tried at the same time for addresses from which many wrong ones came"""
TRIED_WRONG, KEY_WRONG, NOTHING_WRONG = frozenset({200, 401, 409}), frozenset({401}), frozenset[int]()
"""Statuses of an answer by which a secret was wrong, or was good for nothing new: an enrolment that is said again spends no token"""
OF_THIS_MACHINE = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""No page of somebody else's can have these names: who is on this machine (in this container) may call by them, whatever names are listed"""
FORM = b"application/x-www-form-urlencoded"


class TooMany(CoordinatorError):
    code = "too_many_requests"
    status = 429


class HostUnknown(CoordinatorError):
    code = "host_unknown"
    status = 421


class WayRefused(CoordinatorError):
    code = "https_needed"
    status = 403


class FormRefused(CoordinatorError):
    code = "form_refused"
    status = 415


class Doorkeeper:
    def __init__(self, app: ASGIApp, recognise: Recognise, bounds: HowOften, hosts: frozenset[str], through_proxies: bool) -> None:
        """`hosts`: the names by which this coordinator may be called; empty: by any. `through_proxies`: others reach it through these alone."""
        self._app = app
        self._recognise = recognise
        self._hosts = hosts
        self._through_proxies = through_proxies
        self._failures, self._calls = Buckets(bounds.failures), Buckets(bounds.calls)
        self._costly, self._rare, self._keyless = Buckets(bounds.costly), Buckets(bounds.rare), Buckets(bounds.keyless)
        self._few = asyncio.Semaphore(TRIED_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        rule = rule_for(scope["method"], scope["path"])
        place = neighbourhood(scope["client"][0]) if scope.get("client") else ""
        slowed = self._failures.empty_for(place, time.monotonic())
        inside = await self._admitted(scope, receive, send, rule, place, slowed)
        if inside is None:
            return
        if not (slowed and rule.door is Door.TRIED):
            await self._app(scope, *inside)
            return
        async with self._few:
            await self._app(scope, *inside)

    async def _admitted(
        self, scope: Scope, receive: Receive, send: Send, rule: Rule, place: str, slowed: int
    ) -> tuple[Receive, Send] | None:
        """How the route hears and answers who may come in; None: he was answered here, or has gone. What was looked at is not kept while he waits."""
        headings: Headings = dict(scope["headers"])
        body = Body(headings, receive, rule.most)
        shown, data = None, None
        # What is asked with a token that is spent gets 409, and was no better a secret.
        wrong = TRIED_WRONG if rule.door is Door.TRIED else KEY_WRONG if _shows_a_key(headings) else NOTHING_WRONG
        answered = self._answering(scope, receive, send, body, place, slowed, wrong)
        try:
            if _is_keyless(rule, headings) and (wait := self._keyless.take(place, time.monotonic())):
                raise _too_many(wait, "too many calls without a key from this address")
            check_path(scope["path"])
            self._check_host(scope, headings)
            if self._through_proxies and rule.door is not Door.OPEN:
                _check_way(scope)
            if rule.door is Door.KEY and (_shows_a_key(headings) or not body.whole):
                async with self._few if slowed else contextlib.nullcontext():
                    shown = await self._recognise(scope)
            if shown is not None and shown.prove is None:
                self._enter(scope, shown, rule)
            if rule.most is not None:
                if shown is not None and shown.prove is not None:
                    self._check_rate(shown, rule)
                _check_form(headings, rule)
                if (data := await body.collect()) is None:
                    return None
            if shown is not None and shown.prove is not None:
                shown.prove(data)
                self._enter(scope, shown, rule)
            check_depth(data or b"")
        except FedError as error:
            await answer_of(error)(scope, receive, answered)
            return None
        return body.receive, answered

    def _answering(self, scope: Scope, receive: Receive, send: Send, body: Body, place: str, slowed: int, wrong: frozenset[int]) -> Send:
        """Counts wrong secrets, and does not say of one too many that it is wrong: only when to come back."""
        replaced = False

        async def answered(message: Message) -> None:
            nonlocal replaced
            if replaced:
                return
            if message["type"] == "http.response.start":
                if message["status"] in wrong:
                    self._failures.take(place, time.monotonic())
                    if slowed and not _says_the_time(message):
                        replaced = True
                        await answer_of(_too_many(slowed, "too many wrong keys came from this address"))(scope, receive, send)
                        return
                if not body.whole:
                    # Nobody reads what is still to come, and without it the next request on this connection could not be found.
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        return answered

    def _check_host(self, scope: Scope, headings: Headings) -> None:
        if self._hosts:
            called = headings.get(b"host", b"").decode("latin-1").lower()
            name = called if called.endswith("]") else called.rsplit(":", 1)[0]
            if name not in self._hosts and not (name in OF_THIS_MACHINE and _from_this_machine(scope)):
                raise HostUnknown("this coordinator is not called by that name; FEDCOORD_HOSTS lists the names that it has")

    def _enter(self, scope: Scope, shown: Shown, rule: Rule) -> None:
        """It is he: his call is counted, and his connection is his."""
        if rule.most is not None and (wait := self._bucket(rule).take(shown.caller, time.monotonic())):
            raise _too_many(wait, CALLS)
        if (guest := scope.get("state", {}).get("guest")) is not None:
            guest.prove(shown.caller)

    def _check_rate(self, shown: Shown, rule: Rule) -> None:
        """Whoever has had too much already is told so before his body is read."""
        if wait := self._bucket(rule).empty_for(shown.caller, time.monotonic()):
            raise _too_many(wait, CALLS)

    def _bucket(self, rule: Rule) -> Buckets:
        return self._rare if rule.rare else self._costly if rule.costly else self._calls


def _check_way(scope: Scope) -> None:
    """Refuse who comes from another machine, and not by HTTPS through a proxy that is named."""
    if scope["scheme"] != "https" and not _from_this_machine(scope):
        raise WayRefused(
            "this coordinator is reached by HTTPS through its proxy alone (FEDCOORD_PROXIES); the proxy must send X-Forwarded-Proto"
        )


def _from_this_machine(scope: Scope) -> bool:
    client = scope.get("client")
    return bool(client and is_loopback(client[0]))


def _shows_a_key(headings: Headings) -> bool:
    return b"authorization" in headings or SIGNATURE_INPUT.lower().encode() in headings


def _is_keyless(rule: Rule, headings: Headings) -> bool:
    """Whether no key will be looked at; one that is shown where none is needed may be anything."""
    return not rule.free and (rule.door is Door.OPEN or (rule.door is Door.KEY and not _shows_a_key(headings)))


def _says_the_time(message: Message) -> bool:
    """A signature that is good but old: whoever made it is to make another, by the time that he is told."""
    return any(name == TIME.lower().encode() for name, _ in message["headers"])


def _too_many(wait: int, what: str) -> TooMany:
    return TooMany(f"{what}; come back in {wait} s", retry_after_s=wait)


def _check_form(headings: Headings, rule: Rule) -> None:
    """A form is what a page of ours sends; parts of files would be written to the disk before anybody looks at them."""
    kind = headings.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if rule.form and kind not in (b"", FORM):
        raise FormRefused("a form comes as application/x-www-form-urlencoded")
