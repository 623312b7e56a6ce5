"""The agent's key: made here, told to the coordinator, changed without a moment in which nobody knows which one counts."""

import logging
from collections.abc import Callable
from dataclasses import replace

from fedcybgd.agent import credentials
from fedcybgd.agent.client import Client
from fedcybgd.agent.credentials import Credentials
from fedcybgd.agent.errors import KeyRefused, Unreachable
from fedcybgd.agent.retry import patiently
from fedcybgd.agent.settings import Home
from fedcybgd.agent.signing import Signer, new_private_key

log = logging.getLogger("fedagent")
Speak = Callable[[Credentials], Client]
"""A client with the key of these credentials"""


def secret_of(mine: Credentials) -> str | Signer:
    """What requests are made with."""
    return Signer(mine.private_key) if mine.private_key is not None else mine.key or ""


def settle(home: Home, speak: Speak) -> None:
    """Find out which key counts where that was left open, and begin to sign where the coordinator can take it.

    An agent that is older than signatures has a secret until then. Raises `Unreachable`: repeat it until it is answered.
    """
    mine = credentials.load(home)
    if mine.next_private_key is not None:
        mine = _decided(home, mine, speak)
    if mine.private_key is None:
        client = speak(mine)
        client.health()
        if client.takes_signatures:
            change(home, speak)
            log.info("requests are signed from now on, with a key that never leaves this machine")


def settle_in_time(home: Home, speak: Speak) -> None:
    """`settle`, at the start of an agent. Where no coordinator answers, it is waited for only if nobody could say which key counts."""
    try:
        settle(home, speak)
    except Unreachable:
        if credentials.load(home).next_private_key is not None:
            patiently(lambda: settle(home, speak), waited=lambda error: log.warning("which key counts is not known yet: %s", error))


def change(home: Home, speak: Speak) -> None:
    """Another key under the same identity; the old one is void at once. Where no answer comes, `settle` finds out what became of it."""
    mine = credentials.load(home)
    client = speak(mine)
    if not client.takes_signatures:
        client.health()
    if not client.takes_signatures:  # an older coordinator
        credentials.save(home, replace(mine, key=client.rotate_key(), private_key=None, next_private_key=None))
        return
    # One that was told before may yet be heard: it is told again, and no other beside it.
    following = mine if mine.next_private_key is not None else replace(mine, next_private_key=new_private_key())
    credentials.save(home, following)
    assert following.next_private_key is not None
    client.rotate_key(Signer(following.next_private_key).public_key)
    credentials.save(home, _promoted(following))


def renewed(home: Home, speak: Speak) -> str | Signer:
    """Another key before the one that is there ends, to make requests with. Raises `AgentError`; may be repeated until it works."""
    before = credentials.load(home).private_key
    settle(home, speak)
    if credentials.load(home).private_key == before:  # else the last try had come through
        try:
            change(home, speak)
        except KeyRefused as error:
            settle(home, speak)  # it came through a moment ago
            if error.code != "unauthorized" or credentials.load(home).private_key == before:
                raise
    return secret_of(credentials.load(home))


def _decided(home: Home, mine: Credentials, speak: Speak) -> Credentials:
    try:
        speak(_promoted(mine)).me()
    except KeyRefused as error:
        if error.code != "unauthorized":
            raise
        return mine  # not heard so far: it may wait on the way, and is kept
    credentials.save(home, _promoted(mine))
    return _promoted(mine)


def _promoted(mine: Credentials) -> Credentials:
    return replace(mine, key=None, private_key=mine.next_private_key, next_private_key=None)
