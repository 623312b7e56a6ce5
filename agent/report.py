"""`fedagent report`: what somebody who helps wants to know of this agent, in a file without a key, a row or a path of this machine."""

import getpass
import json
import platform
import re
import shutil
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedcybgd.agent import credentials, reaching
from fedcybgd.agent.credentials import Credentials
from fedcybgd.agent.device import find_device
from fedcybgd.agent.errors import AgentError
from fedcybgd.agent.settings import Config, Home
from fedcybgd.agent.status import CoordinatorView, asked, gathered

ABOUT = (
    "Made by `fedagent report`. It has settings, versions, sizes and the kinds of errors. It has no key, no token, nothing of any row, no name of a column "
    "or label, no path of this machine but those in the agent's own directory, and neither the user's nor the machine's name. Look through it before you send it."
)
PACKAGES = ("fedcybgd", "torch", "transformers", "tokenizers", "safetensors", "pydantic", "httpx", "bitsandbytes", "pyarrow")
KEY = re.compile(r"\bfc[a-z]_[A-Za-z0-9_-]{4,}|(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/_-]{32,}={0,2}")
"""Keys and tokens, and whatever is as long and as random as one"""
WHO = re.compile(r"(?<=://)[^/@\s]*@")
QUERY = re.compile(r"(?<=[A-Za-z0-9/])\?[^\s\"']+")
PATH = re.compile(r"(?<![\w.:/<>])~?/[^\s\"',;:)\]]+")
SHORTEST = 3
"""Characters that a user's or a machine's name has, to be taken out wherever it stands"""


class ReportUnsafe(AgentError):
    """Something that must stay here would have left with it."""


def write(home: Home, file: Path, force: bool = False) -> int:
    """Write the report; its bytes. Raises `AgentError` where there is no agent, a secret would be in it, or another file is there."""
    mine = credentials.load(home)
    if file.is_file() and not force:
        raise AgentError(f"{file} is there already; choose another file with -o, or give --force to write over it")
    secrets = [word for word in (mine.key, mine.private_key, mine.next_private_key) if word]
    text = json.dumps(redacted(made(home, mine), home, secrets, _places(home)), indent=2, default=str) + "\n"
    if any(secret in text for secret in secrets):
        raise ReportUnsafe("a key would be in the report; nothing is written")
    new = not file.exists()
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        if new:
            with suppress(OSError):
                file.unlink(missing_ok=True)
        raise AgentError(f"{file}: {error.strerror or error}; choose another file") from error
    return len(text.encode())


def made(home: Home, mine: Credentials) -> dict[str, Any]:
    """What is known, before anything is taken out that only this machine may know by its words."""
    try:
        config, policy = reaching.load(home)
        settings: dict[str, Any] = {"agent.toml": _settings(config), "policy.toml": policy.model_dump(mode="json")}
        device: Any = find_device(config.device.kind, config.device.gpu).model_dump()
        says = asked(home, mine)
    except AgentError as error:
        # It may quote a line of the file.
        settings, device, says = {"error": type(error).__name__}, None, CoordinatorView(error="not asked: the settings are wrong")
    view = gathered(home, mine, says)
    return {
        "about": ABOUT, "at": datetime.now(UTC).isoformat(timespec="seconds"), "packages": dict(_packages()),
        "machine": {"system": platform.system(), "release": platform.release(), "architecture": platform.machine(), "python": platform.python_version()},
        "device": device, "disk_free_bytes": shutil.disk_usage(home.path).free, "settings": settings,
        "agent": {"name": mine.name, "id": mine.agent_id, "alive": view.alive, "signs": mine.private_key is not None},
        "status": _status(view.status), "cache": {"bytes": view.cache_bytes, "limit": view.cache_limit}, "outbox": view.outbox,
        "sent": [one.model_dump() for one in view.sent], "coordinator": says.model_dump(),
    }  # fmt: skip


def _places(home: Home) -> list[str]:
    """Where the settings say that something lies, as they say it and as it is found, the longest first."""
    try:
        config, policy = reaching.load(home)
    except AgentError:
        return []  # then nothing of them is told
    found = {policy.coordinator.authority, *(data.path for data in config.data.values()), *(data.images for data in config.data.values())}
    found |= {str(place) for data in config.data.values() for place in (home.data_path(data), home.images_path(data))}
    return sorted((place for place in found if place and len(place) >= SHORTEST), key=len, reverse=True)


def _settings(config: Config) -> dict[str, Any]:
    """Of data sets neither where they lie, nor how their columns are called."""
    said = config.model_dump(mode="json")
    for data in said["data"].values():
        data["path"] = Path(data["path"]).suffixes[-2:]
        data["columns"] = sorted(data["columns"])
        data["images"] = bool(data.get("images"))
    return said


def _status(status: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Of errors only what a coordinator may hear too: the whole may quote a row."""
    if status is None:
        return None
    said = {name: value for name, value in status.items() if name not in ("error", "errors", "takes_no_work_of")}
    said["errors"] = [{"at": one.get("error_at"), "told": one.get("told", "")} for one in status.get("errors", ())]
    said["takes_no_work_of"] = [{"run": one["run"], "reason": one["reason"]} for one in status.get("takes_no_work_of", ())]
    return said


def _packages() -> Iterable[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed"


def redacted(value: Any, home: Home, secrets: Sequence[str] = (), places: Sequence[str] = ()) -> Any:
    """The same without keys, paths (`places` are known, with spaces or not), and the names of user and machine, in whatever depth."""
    if isinstance(value, str):
        return _redacted(value, home, secrets, places)
    if isinstance(value, Mapping):
        return {_redacted(str(name), home, secrets, places): redacted(one, home, secrets, places) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(one, home, secrets, places) for one in value]
    return value


def _redacted(text: str, home: Home, secrets: Sequence[str], places: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "<key>")
    for place in places:
        text = text.replace(place, "<path>")
    text = text.replace(str(home.path), "<home>")
    text = WHO.sub("<who>@", text)
    text = QUERY.sub("", text)
    text = PATH.sub("<path>", text)
    text = KEY.sub("<key>", text)
    for name, instead in ((_user(), "<user>"), (socket.gethostname(), "<machine>")):
        if len(name) >= SHORTEST:
            text = re.sub(rf"\b{re.escape(name)}\b", instead, text)
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return ""
