"""The owner's policy, policy.toml: what this agent does for a coordinator at the most, whatever that asks for."""

import re
import tomllib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, StringConstraints, ValidationError, field_validator

from fedcybgd.agent.errors import ConfigError, VisitFailed
from fedcybgd.agent.settings import Home, RunPattern, SettingsSection
from fedcybgd.shared.contract.agents import RunOffer
from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.block_names import layer_of, layer_range, layers_of, touches
from fedcybgd.shared.contract.digests import Digest, digest_of
from fedcybgd.shared.contract.manifests import FileRef, Manifest
from fedcybgd.shared.contract.words import ID, MOST_STEPS, Task, problem_in_words

Url = Annotated[str, StringConstraints(pattern=r"^https?://[!-~]{1,500}$")]
Origin = Annotated[str, StringConstraints(pattern=r"^(https?://)?[A-Za-z0-9.*?-]{1,253}(:[0-9]{1,5})?$")]
CoordinatorId = Annotated[str, StringConstraints(pattern=ID)]
BlockPattern = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9.*?-]{0,99}$")]
DAY_S = 86_400.0


class CoordinatorSection(SettingsSection):
    url: Url | None = Field(None, description="the only address that agent.toml may name; none: any")
    id: CoordinatorId | None = Field(None, description="the only coordinator that is worked for, by its id; `fedagent check` shows it")
    keys: list[Digest] = Field(
        default_factory=list,
        description="fingerprints of the signing keys with which its answers may be signed; `fedagent check` shows them; empty: any, or none",
    )
    authority: str | None = Field(None, description="PEM file of the only certificate authority that its certificate may come from")
    storage: list[Origin] | None = Field(
        None,
        description="hosts that shards may be fetched from when the coordinator sends there, as in bucket.example or http://10.0.0.5:9000; "
        "* and ? are wildcards; empty: none, all bytes come from the coordinator; none given: any host of the internet, by https",
    )
    plain_http: bool = Field(True, description="false: no http:// beyond this machine, whatever agent.toml says")


class WorkSection(SettingsSection):
    runs: list[RunPattern] = Field(
        default_factory=lambda: ["*"], description="names of the runs that may be worked for; * and ? are wildcards"
    )
    models: list[Digest] = Field(
        default_factory=list,
        description="fingerprints of configuration and tokenizer that may be trained; `fedagent check` shows them; empty: any",
    )
    tasks: list[Task] = Field(default_factory=lambda: list(get_args(Task)), description="what a model may be trained to do with the rows")
    never_train: list[BlockPattern] = Field(
        default_factory=list,
        description="blocks that are never trained: embeddings, norm, pooler, head, layers, layers.0-3; * and ? are wildcards",
    )


class MostSection(SettingsSection):
    steps: int = Field(MOST_STEPS, ge=1, le=MOST_STEPS, description="training steps of a visit")
    seconds: float = Field(DAY_S, ge=1, allow_inf_nan=False, description="of training in a visit, and of fetching for it; then it is ended")
    fetch_gb: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="fetched for a visit, in 1e9 bytes; none: as much as the disk may hold"
    )
    send_gb: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="sent after a visit, in 1e9 bytes; none: what the coordinator takes"
    )
    disk_gb: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="shards kept, and largest file of the training process, in 1e9 bytes"
    )
    memory_gb: float | None = Field(None, gt=0, allow_inf_nan=False, description="private memory of the training process, in 1e9 bytes")


class LeastSection(SettingsSection):
    batch_size: int = Field(1, ge=1, le=65536, description="rows or windows of a step")
    rows: int = Field(1, ge=1, lt=2**31, description="different rows or windows of a visit")


class Policy(SettingsSection):
    coordinator: CoordinatorSection = CoordinatorSection()
    work: WorkSection = WorkSection()
    most: MostSection = MostSection()
    least: LeastSection = LeastSection()

    @field_validator("work")
    @classmethod
    def _blocks_are_blocks(cls, work: WorkSection) -> WorkSection:
        for pattern in work.never_train:
            if pattern.startswith("layers.") and layer_range(pattern) is None and not re.search(r"[*?]", pattern):
                raise ValueError(f"{pattern!r} is no block: layers.3 is a layer, layers.0-3 are four")
        return work


class PolicyRefused(VisitFailed):
    """What was asked for is against a rule of policy.toml."""

    def __init__(self, rule: str, asked: str, allowed: str) -> None:
        super().__init__("policy_refused", f"{rule}: {asked}; the owner's policy allows {allowed}")


def load_policy(home: Home) -> Policy:
    """Read policy.toml; where there is none, the defaults are in force. Raises `ConfigError`, which names each wrong rule."""
    try:
        values = tomllib.loads(home.policy.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Policy()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{home.policy} is no TOML: {error}") from error
    except OSError as error:  # what forbids must not be passed over because it cannot be read
        raise ConfigError(f"{home.policy} cannot be read: {error.strerror or error}; no work is taken without it") from error
    try:
        return Policy.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{home.policy} is wrong:\n  " + "\n  ".join(_problem(e) for e in error.errors())) from error


def _problem(error: Any) -> str:
    said = {"extra_forbidden": "there is no such rule"}.get(error["type"], problem_in_words(error))
    return f"{'.'.join(str(p) for p in error['loc'])}: {said}"


def fingerprint(files: list[FileRef]) -> Digest:
    """Of a model's configuration and tokenizer: what is computed and how text is read, and not the weights, which every round changes."""
    return digest_of("".join(f"{file.name} {file.digest}\n" for file in sorted(files, key=lambda f: f.name)).encode())


def check_offer(policy: Policy, run: RunOffer) -> None:
    """Raises `PolicyRefused` for a run of which no assignment would be taken."""
    _check_run(policy, run.name)
    _check_task(policy, run.task)
    _check_model(policy, run.files)
    if run.visits is not None:
        _check_steps(policy, run.visits.steps, run.visits.batch_size)
        if run.visits.all_at_once:
            _check_blocks(policy, run.visits.blocks)
        elif run.visits.corrects == "all":
            _check_blocks(policy, [block for block in run.visits.blocks if layer_range(block)])


def check_assignment(policy: Policy, assignment: LeasedAssignment, rows: int | None) -> None:
    """Hold an assignment against every rule that can be judged before anything is fetched. Raises `PolicyRefused`.

    `rows` are those of the data, where they were counted. How many different rows are used is looked at once more, before the first step.
    """
    train, least = assignment.train, policy.least
    _check_run(policy, assignment.run_name)
    _check_task(policy, train.task)
    _check_model(policy, assignment.manifest.files)
    _check_blocks(policy, train.trained)
    _check_corrected(policy, train.corrected, assignment.manifest)
    _check_steps(policy, train.steps, train.batch_size)
    used = None if train.steps is None else train.steps * train.batch_size
    if train.is_classification and rows is not None:
        used = rows if used is None else min(used, rows)
    if used is not None and used < least.rows:
        raise PolicyRefused("least.rows", f"{used} different rows at the most", f"no visit with less than {least.rows}")


def check_fetch(policy: Policy, size: int) -> None:
    most = policy.most.fetch_gb
    if most is not None and size > most * 1e9:
        raise PolicyRefused("most.fetch_gb", f"{size / 1e9:.3f} GB to fetch", f"{most:g}")


def check_send(policy: Policy, size: int) -> None:
    most = policy.most.send_gb
    if most is not None and size > most * 1e9:
        raise PolicyRefused("most.send_gb", f"{size / 1e9:.3f} GB to send", f"{most:g}")


def _check_run(policy: Policy, name: str) -> None:
    if not any(fnmatchcase(name, pattern) for pattern in policy.work.runs):
        raise PolicyRefused("work.runs", f"run {name}", ", ".join(policy.work.runs) or "none")


def _check_task(policy: Policy, task: str) -> None:
    if task not in policy.work.tasks:
        raise PolicyRefused("work.tasks", f"task {task}", ", ".join(policy.work.tasks) or "none")


def _check_blocks(policy: Policy, blocks: Iterable[str], how: str = "trained") -> None:
    for block in blocks:
        if found := next((pattern for pattern in policy.work.never_train if touches(pattern, block)), None):
            raise PolicyRefused("work.never_train", f"block {block} would be {how}", f"no block that {found} means to be trained")


def _check_corrected(policy: Policy, matrices: Iterable[str], manifest: Manifest) -> None:
    """By their names: what they are beside in the model itself is looked at once more, before the first step."""
    if not policy.work.never_train:
        return
    for layer in sorted({layer for weight in matrices if (layer := layer_of(weight)) is not None}):
        names = dict.fromkeys([f"layers.{layer}", *(ref.block for ref in manifest.blocks if layer in layers_of(ref.block))])
        _check_blocks(policy, names, "corrected")


def _check_steps(policy: Policy, steps: int | None, batch_size: int) -> None:
    least, most = policy.least.batch_size, policy.most.steps
    if batch_size < least:
        raise PolicyRefused("least.batch_size", f"a batch of {batch_size}", f"no batch of less than {least}")
    if steps is not None and steps > most:
        raise PolicyRefused("most.steps", f"{steps} steps", f"{most}")


def _check_model(policy: Policy, files: list[FileRef]) -> None:
    if policy.work.models and (found := fingerprint(files)) not in policy.work.models:
        raise PolicyRefused("work.models", f"configuration and tokenizer with the fingerprint {found}", "others only")


def in_force(home: Home, policy: Policy) -> str:
    """The rules that the owner has made, in a line."""
    own = policy.model_dump(exclude_unset=True)
    rules = [f"{section}.{name} = {_shown(value)}" for section, values in own.items() for name, value in values.items()]
    return f"{home.policy}: {'; '.join(rules)}" if rules else "no rules of your own; `fedagent policy-file` writes a file to make some in"


def template(believed: Sequence[str] = ()) -> str:
    """A first policy.toml: every rule with what it means and what is in force without it. `believed`: `coordinator.keys`, in force."""
    lines = [
        "# What this agent does for a coordinator at the most, whatever it is asked. A line that begins with # is not in force:",
        "# it shows the default. `fedagent check` tests this file; the agent looks at it before every claim.",
    ]
    for title, section in Policy.model_fields.items():
        lines += ["", f"[{title}]"]
        for name, field in section.annotation.model_fields.items():  # type: ignore[union-attr]
            lines.append(f"# {field.description}")
            lines.append(f"# {name} = {_shown(EXAMPLES.get((title, name), field.get_default(call_default_factory=True)))}")
            if believed and (title, name) == ("coordinator", "keys"):
                lines[-1] = f"{name} = {_shown(list(believed))}"
    return "\n".join(lines) + "\n"


EXAMPLES: dict[tuple[str, str], object] = {
    ("coordinator", "url"): "https://coordinator.example",
    ("coordinator", "id"): "crd_0123456789abcdef",
    ("coordinator", "storage"): ["bucket.s3.example"],
    ("coordinator", "authority"): "/etc/ssl/our-authority.pem",
    ("most", "fetch_gb"): 5,
    ("most", "send_gb"): 1,
    ("most", "disk_gb"): 20,
    ("most", "memory_gb"): 8,
}
"""What a rule without a default may look like."""


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_shown(v) for v in value) + "]"
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value).lower()


def authority_of(home: Home, policy: Policy) -> Path | None:
    return None if policy.coordinator.authority is None else (home.path / Path(policy.coordinator.authority).expanduser()).resolve()
