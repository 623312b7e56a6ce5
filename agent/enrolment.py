"""`fedagent enroll`: what a person types, held against what it must be, each mistake a line that says what is right; and the enrolment."""

import platform
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

from pydantic import TypeAdapter, ValidationError

from fedcybgd.agent import credentials, policy
from fedcybgd.agent.client import Client
from fedcybgd.agent.device import find_device
from fedcybgd.agent.errors import AgentError, ConfigError, CoordinatorKeyDiffers, OptionWrong
from fedcybgd.agent.proof import Proof
from fedcybgd.agent.settings import Card, Config, DeviceSection, Home, RunPattern
from fedcybgd.agent.signing import Signer
from fedcybgd.shared.contract.agents import DeviceInfo, EnrolAnswer, EnrolRequest
from fedcybgd.shared.contract.digests import Digest
from fedcybgd.shared.contract.errors import DataError
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.contract.words import NAME_CHARACTERS, Name
from fedcybgd.shared.files.tables import column_names
from fedcybgd.shared.files.well_known import clear_ones
from fedcybgd.shared.host.addresses import address_of

TOKEN = re.compile(r"fct_[A-Za-z0-9_-]{43}")
TOKEN_LENGTH = 47
MOST_TOKEN = 4096
"""Characters that are read of a file that should be a token"""


def whole_token(text: str) -> str:
    token = text.strip()
    if TOKEN.fullmatch(token) is None:
        raise ConfigError(
            f"the token is not whole: it has {len(token)} characters, a token has {TOKEN_LENGTH} and begins with fct_; "
            "copy it again, or ask the operator for a new one (fedcoord agents token)"
        )
    return token


def agent_name(given: str | None) -> str:
    """The name as given, or one made of the host's."""
    if given is None:
        host = re.sub(r"[^A-Za-z0-9._-]+", "-", platform.node().split(".")[0]).lstrip("._-")
        return host[:100] or "agent"
    try:
        return TypeAdapter(Name).validate_python(given)
    except ValidationError as error:
        raise ConfigError(f"{given[:120]!r} is no name for an agent: a name has {NAME_CHARACTERS}; choose another --name") from error


def run_patterns(given: list[str]) -> list[str]:
    names = [part for text in given for part in text.replace(",", " ").split()]
    try:
        return TypeAdapter(list[RunPattern]).validate_python(names)
    except ValidationError as error:
        wrong = names[int(error.errors()[0]["loc"][0])]
        raise ConfigError(f"{wrong[:120]!r} is no name of a run: a name has {NAME_CHARACTERS}; * and ? are wildcards") from error


def columns_of(given: list[str]) -> dict[str, str]:
    """Field → column, as given."""
    found = dict(each.partition("=")[::2] for each in given)
    if wrong := [each for each in given if not all(each.partition("="))]:
        raise OptionWrong(f"--column {one_line(wrong[0])[:120]}: say FIELD=COLUMN, as in text=question")
    return found


def well_known(data: Path | None, given: Mapping[str, str]) -> dict[str, str]:
    """Field → column, where the file's own names leave no doubt and nobody has said anything of its columns."""
    if data is None or given:
        return {}
    try:
        return clear_ones(column_names(data.expanduser()) or [])
    except (DataError, OSError):
        return {}  # `fedagent check` says what is wrong with it


def chosen_gpu(given: str | None) -> int | str | None:
    """The card as given: its number, or its UUID."""
    if given is None:
        return None
    try:
        return TypeAdapter[int | str](int if given.isdecimal() else Card).validate_python(given)
    except ValidationError as error:
        raise ConfigError(f"{given[:120]!r} is no GPU: give its number as nvidia-smi counts, or its UUID (GPU-…)") from error


def device_of(home: Home, gpu: int | str | None = None) -> DeviceInfo:
    """What an agent trains on: as an agent.toml says that is there, else with the card given. Raises `ConfigError`."""
    section = home.load_config().device if home.config.exists() else DeviceSection(gpu=gpu)
    return find_device(section.kind, section.gpu)


def coordinator_key(given: str | None) -> str | None:
    """The fingerprint as given."""
    try:
        return None if given is None else TypeAdapter(Digest).validate_python(given.strip().lower())
    except ValidationError as error:
        raise ConfigError(
            f"{(given or '')[:120]!r} is no fingerprint: it has 64 digits of 0-9 and a-f; `fedcoord status` shows it to the operator"
        ) from error


def check_new(home: Home) -> None:
    """Raise `AgentError` where an agent is enrolled already."""
    if home.credentials.exists():
        raise AgentError(f"{home.path} is enrolled already, as {credentials.load(home).name}; use another --home for another agent")


def settings_there(home: Home) -> Config | None:
    """What an agent.toml says that is there already: it stays as it is."""
    return home.load_config() if home.config.exists() else None


def check_agrees(
    home: Home, there: Config, url: str, data: Path | None, runs: list[str], columns: Mapping[str, str], plain_http: bool = False,
    gpu: int | str | None = None,
) -> None:  # fmt: skip
    """Raise `ConfigError` where an agent.toml that is there does not say what the command line does: one of the two would not count."""
    of_data = [one for one in there.data.values() if data is None or home.data_path(one) == data.expanduser().resolve()]
    missing = {
        "the URL": address_of(there.coordinator) != url,
        "--data": not of_data,
        "--runs": bool(of_data) and not set(runs) <= {run for one in of_data for run in one.runs},
        "--column": bool(of_data) and not any(columns.items() <= one.columns.items() for one in of_data),
        "--plain-http": plain_http and not there.plain_http,
        "--gpu": gpu is not None and there.device.gpu != gpu,
    }
    if wrong := [word for word, differs in missing.items() if differs]:
        raise ConfigError(
            f"{home.config} is there already, stays as it is, and does not say the same as {', '.join(wrong)}: "
            "write that into it or leave the option out, or move the file away"
        )


def enrol(
    home: Home, url: str, token: str, name: str, settings: str, believed: str | None = None, gpu: int | str | None = None
) -> EnrolAnswer:
    """Spend a token on an identity and a key, and write a first agent.toml. Raises `AgentError`, before the token is spent if it can.

    `believed`: fingerprint of the coordinator's signing key, which goes into a first policy.toml. One that is there already counts.
    `gpu`: the card of `settings`.
    """
    check_new(home)
    try:
        settings.encode()
    except UnicodeEncodeError as error:
        raise ConfigError("the path of your data is no UTF-8, and agent.toml could not name it: give the file another name") from error
    token, device = whole_token(token), device_of(home, gpu)
    rules = policy.load_policy(home)
    if believed is not None and home.policy.exists() and believed not in rules.coordinator.keys:
        said = "believes other keys of a coordinator" if rules.coordinator.keys else "is there, and believes no key of a coordinator"
        raise ConfigError(f"{home.policy} {said}; write {believed} into its coordinator.keys, or leave the option out")
    given = [believed] if believed is not None else []
    proof, authority = Proof(rules.coordinator.keys or given), policy.authority_of(home, rules)
    client = Client(url, "", rules.coordinator.id, authority, proof, rules.coordinator.storage)
    if proof.believes_one:
        client.health()  # whoever cannot sign does not get to see the token
    home.ready()
    with _first_files({home.policy: policy.template(given), home.config: settings}):
        return _spend(home, client, token, name, device)


@contextmanager
def _first_files(texts: Mapping[Path, str]) -> Iterator[None]:
    """Settings and policy for an agent that is enrolled in here: with a key, and without them, nobody could enrol it again.

    What is there stays. Where no agent is enrolled none is left: the next try may be told something else.
    """
    new = [path for path in texts if not path.exists()]
    try:
        for path in new:
            credentials.write_whole(path, texts[path])
        yield
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise


def next_steps(
    data: Path | None, consented: Collection[str], home: Path | None = None, mapped: Mapping[str, str] = MappingProxyType({})
) -> Iterator[str]:
    """What was found out for the new agent.toml, what is still missing there, and what to do then; `home` as it was given."""
    there, given = data is not None and data.expanduser().is_file(), f" --home {shlex.quote(str(home))}" if home else ""
    if data is not None and not there:
        yield f"there is no file {data}: bring it there, or correct `path` in agent.toml"
    if mapped:
        said = ", ".join(f"{field} is read from {column!r}" for field, column in mapped.items())
        yield f"{said}: by the column's name; `columns` in agent.toml says it, if another is meant"
    if not consented:
        yield "no run may use your data yet: name runs in agent.toml, under `runs`"
    check = f"fedagent check{given}"
    yield f"next: {check}, then fedagent run{given}" if there and consented else f"next: complete it, then {check}"


def enrol_again(home: Home, client: Client, token: str) -> None:
    """Spend a token that the operator has made for this agent on another key. The agent stays the same."""
    mine = credentials.load(home)
    _spend(home, client, token, mine.name, device_of(home), mine.agent_id)


def token_of(given: str | None, file: str | None, ask: Callable[[], str]) -> str:
    """The token as it was given: in a file, or in one that is standard input (`-`), else by word or environment, else as a person types it."""
    if file is None:
        return ask() if given is None else given
    try:
        return (sys.stdin if file == "-" else Path(file).expanduser().open(encoding="utf-8")).read(MOST_TOKEN)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the token cannot be read from {file}: {error}") from error


def _spend(home: Home, client: Client, token: str, name: str, device: DeviceInfo, agent_id: str | None = None) -> EnrolAnswer:
    """The private key is made here and stays here."""
    home.ready()
    private_key = credentials.begun(home, whole_token(token))
    request = EnrolRequest(
        token=whole_token(token), name=name, device=device, version=version("fedcybgd"), public_key=Signer(private_key).public_key,
        agent_id=agent_id,
    )  # fmt: skip
    answer = client.enrol(request)
    if answer.public_key != request.public_key and (answer.public_key is not None or client.proof.believes_one):
        raise CoordinatorKeyDiffers(
            "the coordinator has enrolled this agent with another key than its own: something on the way has put it in"
        )
    # A coordinator that is older than signatures gives a secret instead.
    mine = credentials.Credentials(
        answer.agent_id, answer.name, answer.key, client.coordinator, private_key if answer.key is None else None
    )  # fmt: skip
    credentials.save(home, mine)
    return answer
