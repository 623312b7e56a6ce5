"""The agent's identity and key, in a file that only its owner may read."""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedcybgd.agent.errors import NotEnrolled
from fedcybgd.agent.settings import Home
from fedcybgd.agent.signing import new_private_key
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.files.volumes import settle


@dataclass(frozen=True)
class Credentials:
    agent_id: str
    name: str
    key: str | None
    """the secret of an agent that does not sign its requests"""
    coordinator: str | None = None
    """identity of the coordinator that gave the key"""
    private_key: str | None = None
    """with which it signs"""
    next_private_key: str | None = None
    """with which it will sign, once the coordinator has taken it; nobody knows yet whether it has"""


def save(home: Home, credentials: Credentials) -> None:
    _write(home.credentials, asdict(credentials))
    home.enrolling.unlink(missing_ok=True)


def begun(home: Home, token: str) -> str:
    """The private key that this token is spent for. The same again where that was tried and no answer came: the coordinator may have taken it."""
    digest = digest_of(token.encode())
    try:
        kept = json.loads(home.enrolling.read_text())
        if kept["token"] == digest:
            return str(kept["private_key"])
    except (OSError, ValueError, TypeError, KeyError):
        pass  # there is none, or it is no use
    private_key = new_private_key()
    _write(home.enrolling, {"token": digest, "private_key": private_key})
    return private_key


def _write(path: Path, values: dict[str, str | None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(values))


def write_whole(path: Path, text: str, mode: int = 0o600) -> None:
    """For its owner's eyes only, unless another `mode` is given, and whole or not at all."""
    aside = path.with_suffix(".part")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        settle(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # whoever is told of a full disk is to know which
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def load(home: Home) -> Credentials:
    try:
        return Credentials(**json.loads(home.credentials.read_text()))
    except FileNotFoundError as error:
        raise NotEnrolled(
            f"this agent is not enrolled ({home.credentials} is not there); run `fedagent enroll URL`, which asks for the token"
        ) from error
    except OSError as error:
        raise NotEnrolled(
            f"{home.credentials} cannot be read: {error.strerror or error}; make it a file that this user may read, or name another directory with --home"
        ) from error
    except (ValueError, TypeError) as error:
        raise NotEnrolled(f"{home.credentials} is damaged; enrol again under another name") from error


def remember(home: Home, coordinator: str) -> None:
    """Keep the identity of the coordinator, where it is not known yet."""
    mine = load(home)
    if mine.coordinator is None:
        save(home, replace(mine, coordinator=coordinator))


def rename(home: Home, name: str) -> None:
    """Keep the name that the coordinator's operator has given the agent."""
    mine = load(home)
    if mine.name != name:
        save(home, replace(mine, name=name))
