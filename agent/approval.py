"""`fedagent approve`: what a run would do with the owner's rows, and its name in agent.toml once the owner has agreed."""

import json
import os
import re
import tomllib
from collections.abc import Iterator

from fedcybgd.agent import credentials, reaching
from fedcybgd.agent.consent import NotConsented, chosen
from fedcybgd.agent.errors import AgentDiskFull, AgentError, ConfigError
from fedcybgd.agent.policy import PolicyRefused, check_offer
from fedcybgd.agent.readiness import Verdict, judge, report
from fedcybgd.agent.settings import ONLY, Config, Home
from fedcybgd.agent.telling import FIRST_MEANS, LABELS_GO, what_deltas_tell
from fedcybgd.shared.contract.agents import RunOffer
from fedcybgd.shared.contract.plain import one_line
from fedcybgd.shared.contract.words import CLASSIFICATIONS
from fedcybgd.shared.files.disk import disk_reason

SECTION = re.compile(r"^\s*\[\s*(.+?)\s*\]\s*(#.*)?$")
RUNS = re.compile(r"^(\s*runs\s*=\s*)\[(.*?)\](.*)$", re.DOTALL)


class RunNotOpen(AgentError):
    """The coordinator offers this agent no run of that name."""

    code = "run_not_open"


class PolicyForbids(AgentError):
    """No assignment of the run would be taken, whatever agent.toml says."""

    code = "policy_refused"


class Approval:
    """A run that is offered to this agent, and the data set that is meant for it. Raises `AgentError`, `RunNotOpen`, `PolicyForbids`."""

    def __init__(self, home: Home, run: str, data: str | None) -> None:
        self._home = home
        self._config, self._policy = reaching.load(home)
        self._client = reaching.client(home, self._config, self._policy, credentials.load(home), who_answers=True)
        offers = self._client.me().runs
        self.run = _offered(offers, run)
        try:
            check_offer(self._policy, self.run)
        except PolicyRefused as error:
            raise PolicyForbids(f"run {self.run.name}: {error.message} (policy.toml)") from error
        self.data = _data_set(self._config, data)
        others = [name for name, section in self._config.data.items() if name != self.data and self.run.name in section.runs]
        if others:
            raise ConfigError(f"run {self.run.name} may use [data.{others[0]}] already; take its name out there first, if others are meant")

    @property
    def given(self) -> bool:
        """Whether the run may use the rows already."""
        try:
            return chosen(self._config.data, self.run.name) == self.data
        except NotConsented:
            return False

    def terms(self) -> Iterator[str]:
        """What the owner is to know before agreeing, a sentence each."""
        visit, section = self.run.visits, self._config.data[self.data]
        yield f"run {self.run.name} at {self._config.coordinator} trains {self.run.task} on {self._home.data_path(section)}"
        if visit is not None:
            steps = "its passes over the rows" if visit.steps is None else f"{visit.steps} steps"
            shown = ", ".join(visit.blocks[:6]) + (f" and {len(visit.blocks) - 6} more" if len(visit.blocks) > 6 else "")
            yield f"a visit trains {'all' if visit.all_at_once else 'some'} of {shown}, with {steps} of {visit.batch_size} rows"
            if visit.delta_patches:
                yield "other agents may fetch this agent's deltas"
        yield from what_deltas_tell(self.run)
        if section.tell_labels and self.run.task in CLASSIFICATIONS:
            yield f"{LABELS_GO}. {FIRST_MEANS}"

    def give(self) -> Verdict:
        """Write the name of the run into agent.toml, see whether the rows fit, and tell the coordinator. Raises `ConfigError`, and nothing is written."""
        if not self.given:
            before = self._home.config.read_text(encoding="utf-8")
            _replace(self._home, before, with_run(before, self.data, self.run.name))
        config, policy = reaching.load(self._home)
        verdict = judge(self._home, config, policy, self.run)
        report(self._client, config, [verdict])
        self._home.checked.touch()  # a daemon that runs takes the run's work at its next question
        return verdict


def _offered(offers: list[RunOffer], name: str) -> RunOffer:
    found = [offer for offer in offers if name in (offer.name, offer.run_id)]
    if not found:
        there = ", ".join(sorted(offer.name for offer in offers)) or "none"
        raise RunNotOpen(f"no run {name[:120]!r} is open to this agent; those that are: {there}")
    return found[0]


def _data_set(config: Config, data: str | None) -> str:
    names = list(config.data)
    if data is None and len(names) > 1:
        raise ConfigError(f"say by --data which rows are meant: {', '.join(names)}")
    if data is not None and data not in names:
        raise ConfigError(f"there is no [data.{one_line(data)[:120]}] in agent.toml; there are {', '.join(names)}")
    return data or names[0]


def with_run(text: str, data: str, run: str) -> str:
    """agent.toml with a name more in the `runs` of a data set, and otherwise as it was. Raises `ConfigError` where that cannot be done."""
    places = {f"data.{data}", "data"} if data == ONLY else {f"data.{data}"}
    lines, here, begins = text.splitlines(keepends=True), "", None
    for number, line in enumerate(lines):
        if (section := SECTION.match(line)) is not None:
            here = section[1].replace('"', "").replace("'", "").replace(" ", "")
        elif here in places and re.match(r"\s*runs\s*=", line):
            begins = number
    head, tail = "".join(lines[:begins]), "".join(lines[begins:]) if begins is not None else ""
    found = RUNS.match(tail)
    by_hand = ConfigError(f'agent.toml has no list `runs` that can be added to; write "{run}" into `runs` of [data.{data}] yourself')
    if found is None:
        raise by_hand
    inside = found[2].rstrip().rstrip(",")
    made = f"{head}{found[1]}[{inside}{', ' if inside.strip() else ''}{json.dumps(run)}]{found[3]}"
    try:
        old, new = tomllib.loads(text), tomllib.loads(made)
        (new["data"].get(data) or new["data"])["runs"].remove(run)
        if new != old:
            raise by_hand
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise by_hand from error
    return made


def _replace(home: Home, before: str, after: str) -> None:
    """Whole or not at all; what somebody has changed meanwhile is not lost. Who may read it may go on, also where root did this."""
    file = home.config.resolve()  # a link stays one
    part = file.with_name(f"{file.name}.new")
    try:
        was = file.stat()
        with part.open("w", encoding="utf-8") as opened:
            opened.write(after)
            opened.flush()
            os.fsync(opened.fileno())  # some file systems find out only then that there is no room
        part.chmod(was.st_mode & 0o777)
        if os.name == "posix" and os.geteuid() == 0:
            os.chown(part, was.st_uid, was.st_gid)
        if file.read_text(encoding="utf-8") != before:
            raise ConfigError(f"{home.config} was changed meanwhile; try again")
        part.replace(file)
    except OSError as error:
        kind = AgentDiskFull if disk_reason(error) == "disk_full" else ConfigError
        raise kind(f"{home.config} cannot be written, and is as it was: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
