"""The agent's own file, agent.toml: which runs may use which data, its device, its limits."""

import json
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, time
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_data_path
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from fedcybgd.agent.errors import AgentDiskFull, ConfigError
from fedcybgd.agent.messages import TrainingOptions
from fedcybgd.shared.contract.agents import DeclaredLimits
from fedcybgd.shared.contract.words import problem_in_words
from fedcybgd.shared.files.disk import disk_reason
from fedcybgd.shared.files.table_format import TableFormat
from fedcybgd.shared.host import machine

Card = Annotated[str, StringConstraints(pattern=r"^(GPU|MIG)-[0-9a-fA-F-]{1,60}$")]
Hours = Annotated[str, StringConstraints(pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$")]
RunPattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9*?][A-Za-z0-9._*?-]{0,99}$")]
DataName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")]
ONLY = "rows"
"""The name of the only data set, where it has none"""
MAX_PATTERNS = 100


class SettingsSection(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DataSection(TableFormat, SettingsSection):
    path: str = Field(description="file with this agent's rows; relative to agent.toml")
    columns: dict[str, str] = Field(default_factory=dict, description='field = "column", where they differ')
    images: str | None = Field(
        None,
        min_length=1,
        description="folder of the images that rows name by path, relative to the folder of the data file; training may read all of it",
    )
    runs: list[RunPattern] = Field(
        default_factory=list, description="names of the runs that may use these rows; * and ? are wildcards; empty: none may"
    )
    tell_rows: Literal["roughly", "exactly", "no"] = Field(
        "roughly", description="what the coordinator is told of their number before a run: roughly is 1, 10, 100, … or more"
    )
    tell_labels: bool = Field(
        False, description="true: with each delta of a classifier goes how many rows of each label the visit trained on"
    )


class DeviceSection(SettingsSection):
    kind: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="what to train on")
    gpu: Annotated[int, Field(ge=0)] | Card | None = Field(
        None,
        description="which GPU: its number as nvidia-smi counts, or its UUID (GPU-…); default: the first that CUDA_VISIBLE_DEVICES leaves",
    )
    threads: int = Field(0, ge=0, description="threads of the training process on a CPU; 0: as many as the machine or container has cores")


class LimitsSection(SettingsSection):
    memory_gb: float | None = Field(None, gt=0, description="private memory of the training process at the most, in 1e9 bytes")
    gpu_memory_gb: float | None = Field(
        None,
        gt=0,
        description="what the training process takes of a GPU at the most, in 1e9 bytes; about 0.8 of that is the driver's",
    )
    disk_gb: float = Field(
        20, gt=0, description="shards, what error feedback keeps, the pixels of images, and a prefix cache, at the most, in 1e9 bytes"
    )
    bandwidth_mbit: float | None = Field(None, gt=0, description="speed of the line, in 1e6 bits a second; what is planned goes by it")
    stall_s: float = Field(1800, ge=10, description="seconds without a finished step after which a visit is given up")
    hours: list[Hours] = Field(default_factory=list, description='when work may begin, as in "22:00-06:00", local time; empty: always')


class SiteCacheSection(SettingsSection):
    url: str | None = Field(
        None,
        pattern=r"^https?://[^/@\s?#]+(/[^\s?#]*)?$",
        description="a cache of this site (`fedagent serve-cache`), asked for shards before the coordinator is; none: the coordinator alone",
    )
    plain_http: bool = Field(
        False, description="true: http:// beyond this machine, too; whoever is on the way reads the shards, and no key goes there"
    )


class Config(SettingsSection):
    coordinator: str = Field(pattern=r"^https?://", description="URL of the coordinator")
    plain_http: bool = Field(
        False,
        description="true: http:// beyond this machine, too; whoever is on the way reads the key and every delta, and can answer instead",
    )
    data: dict[DataName, DataSection] = Field(min_length=1)
    device: DeviceSection = DeviceSection()
    limits: LimitsSection = LimitsSection()
    training: TrainingOptions = TrainingOptions()
    site_cache: SiteCacheSection = SiteCacheSection()
    log_format: Literal["text", "json"] = Field(
        "text",
        description="of lines on standard error: text for people; json: an object a line, with run, round, block and agent as fields",
    )

    @model_validator(mode="before")
    @classmethod
    def _only_one(cls, values: Any) -> Any:
        """Who has one data set only may write it under [data] itself."""
        if isinstance(values, dict) and is_only_one(values.get("data")):
            return {**values, "data": {ONLY: values["data"]}}
        return values

    @model_validator(mode="after")
    def _few_patterns(self) -> "Config":
        if (count := sum(len(data.runs) for data in self.data.values())) > MAX_PATTERNS:
            raise ValueError(f"the data sets name {count} runs and patterns in all, {MAX_PATTERNS} are allowed; use wildcards")
        return self


def is_only_one(data: Any) -> bool:
    return isinstance(data, dict) and any(not isinstance(value, dict) for value in data.values())


class Home:
    """The agent's directory: configuration, key, cache, outbox, status."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = (path or user_data_path("fedagent")).resolve()
        self.config = self.path / "agent.toml"
        self.policy = self.path / "policy.toml"
        self.credentials = self.path / "credentials.json"
        self.enrolling = self.path / "enrolling.json"
        self.cache = self.path / "cache"
        self.outbox = self.path / "outbox"
        self.residuals = self.path / "residuals"
        self.work = self.path / "work"
        self.status = self.path / "status.json"
        self.sign = self.path / "sign"
        """Touched by the daemon as long as it works"""
        self.sent = self.path / "sent.json"
        self.lock = self.path / "lock"
        self.checked = self.path / "checked"
        """Touched by `fedagent check`: the daemon looks again at what it refused"""

    def ready(self) -> None:
        """Make the directory and try to write into it. Raises `ConfigError`: without it no key, status or delta could be kept."""
        probe = self.path / ".writable"
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self.path.stat().st_mode & 0o077:
                self.path.chmod(0o700)  # rows, key and deltas are nobody else's to read
            probe.write_bytes(b"\0" * 4096)
            probe.unlink()
        except OSError as error:
            why = {"disk_full": "its disk is full: free space", "disk_unwritable": "it cannot be written: give it to this user"}
            advice = why.get(disk_reason(error) or "", "make it a directory")
            with suppress(OSError):
                probe.unlink(missing_ok=True)
            kind = AgentDiskFull if disk_reason(error) == "disk_full" else ConfigError
            raise kind(f"{self.path}: {error.strerror or error}; {advice}, or name another one with --home") from error

    def load_config(self) -> Config:
        """Read agent.toml. Raises `ConfigError`, which names each wrong field."""
        try:
            values = tomllib.loads(self.config.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"there is no {self.config}; `fedagent enroll` writes one, --home names another directory") from error
        except OSError as error:
            raise ConfigError(f"{self.config} cannot be read: {error.strerror or error}; make it a file that this user may read") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{self.config} is no TOML: {error}") from error
        return self.parsed(values)

    def parsed(self, values: dict[str, Any]) -> Config:
        """What agent.toml says, or would. Raises `ConfigError`, which names each wrong field."""
        try:
            return Config.model_validate(values)
        except ValidationError as error:
            problems = [_problem(e, is_only_one(values.get("data"))) for e in error.errors()]
            raise ConfigError(f"{self.config} is wrong:\n  " + "\n  ".join(problems)) from error

    def data_path(self, data: DataSection) -> Path:
        return (self.path / Path(data.path).expanduser()).resolve()

    def images_path(self, data: DataSection) -> Path | None:
        """The folder of the images that rows name by path; None where none do."""
        return None if data.images is None else (self.data_path(data).parent / Path(data.images).expanduser()).resolve()


def _problem(error: Any, only_one: bool) -> str:
    place: tuple[int | str, ...] = error["loc"]
    if place[:1] == ("consent",):
        return 'consent: runs are named with the data that they may use: runs = ["…"] under [data.NAME], instead of [consent]'
    if only_one and place[:2] == ("data", ONLY):
        place = ("data", *place[2:])
    said = {"extra_forbidden": "there is no such setting", "missing": "this setting is missing"}.get(error["type"], problem_in_words(error))
    return f"{'.'.join(str(p) for p in place)}: {said}" if place else said


def memory_allowed(config: Config, device: str) -> int:
    """Bytes that training may take of its device, as the owner says; 0: whatever there is."""
    limits = config.limits
    return int(((limits.gpu_memory_gb if device == "cuda" else limits.memory_gb) or 0) * 1e9)


def declared(config: Config, device: str) -> DeclaredLimits:
    """What the coordinator is told of the limits; `device` is what is trained on: on a card its memory counts, and no container's limit."""
    limits = config.limits
    allowed = [memory_allowed(config, device), machine.limits().memory_bytes or 0 if device != "cuda" else 0]
    return DeclaredLimits(
        memory_bytes=min((n for n in allowed if n), default=0), bytes_per_s=int((limits.bandwidth_mbit or 0) * 125_000),
        disk_bytes=int(limits.disk_gb * 1e9),
    )  # fmt: skip


def within_hours(hours: list[str], now: datetime) -> bool:
    """Whether work may begin at `now` (local time); a span may go over midnight, and one that ends where it begins is a whole day."""
    if not hours:
        return True
    at = now.time()
    for span in hours:
        begin, end = (time.fromisoformat(part) for part in span.split("-"))
        if (begin <= at < end) if begin < end else (at >= begin or at < end):
            return True
    return False


def template(
    url: str,
    data: str | None,
    runs: list[str],
    plain_http: bool = False,
    gpu: int | str | None = None,
    columns: Mapping[str, str] | None = None,
) -> str:
    """A first agent.toml, with comments."""
    mapped = ", ".join(f"{_quoted(field)} = {_quoted(column)}" for field, column in (columns or {}).items())
    return f"""# The agent's own settings. `fedagent check` tests them.
coordinator = {_quoted(url)}
{"" if plain_http else "# "}plain_http = true             # for a network that is trusted itself: http:// beyond this machine

# log_format = "json"           # lines for programs on standard error

[data.{ONLY}]                     # a name of your own; add [data.OTHER] for other rows
path = {_quoted(data or "data.jsonl")}          # CSV, JSONL or Parquet (.gz may follow); relative to this file
runs = {json.dumps(runs)}                       # which runs may use these rows, as in ["intents", "bank-*"]; empty: none may
{f"columns = {{ {mapped} }}" if mapped else '# columns = { text = "question", label = "intent" }'}   # field = "column", where they differ

[device]
kind = "auto"                   # auto, cpu, cuda, mps
{"# gpu = 1" if gpu is None else f"gpu = {json.dumps(gpu)}"}                       # which one, where there are several
threads = 0                     # 0: as many as there are cores

[limits]
# memory_gb = 8                 # private memory of the training process at the most
# gpu_memory_gb = 20            # the same on a GPU
disk_gb = 20                    # shards, what error feedback keeps, the pixels of images, and a prefix cache, at the most
# bandwidth_mbit = 50           # speed of the line; emulators are planned by it
hours = []                      # when work may begin, as in ["22:00-06:00"]; empty: always

# [site_cache]                  # one machine of this site fetches a shard once for all agents here: fedagent serve-cache
# url = "https://cache.example:8441"

[training]                      # memory against time; results are the same
checkpointing = "auto"          # auto, on, off
prefix_cache = "auto"           # auto, off, memory, disk
chunked_logits = "auto"         # auto, on, off
graphs = "off"                  # auto, off; on a card
"""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a string of JSON is one of TOML
