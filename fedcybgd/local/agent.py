"""`Agent.local()`: an agent that is enrolled and works, `fedagent run` in a process of its own."""

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from fedcybgd.agent import credentials
from fedcybgd.agent.enrolment import check_new, enrol, run_patterns, settings_there
from fedcybgd.agent.errors import ConfigError
from fedcybgd.agent.settings import ONLY, Home, template
from fedcybgd.local.place import Place
from fedcybgd.local.process import LocalProcess, Process
from fedcybgd.local.toml import Value, dumps
from fedcybgd.shared.host.addresses import address_of


class Agent(LocalProcess):
    """A running agent."""

    @classmethod
    def local(
        cls,
        coordinator_url: str,
        token: str,
        name: str,
        *,
        data: Path | str,
        runs: Sequence[str],
        columns: Mapping[str, str] | None = None,
        images: Path | str | None = None,
        tell_labels: bool = False,
        home: Path | str | None = None,
        settings: Mapping[str, Mapping[str, Value]] | None = None,
        log: Path | str | None = None,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 120,
    ) -> Self:
        """Enrol an agent and start it; return when it waits for work.

        `runs` are the names of the runs that may use the rows of the file `data` (`*` and `?` are wildcards): no other ever does.
        `columns` says field = column where they differ, `images` is the folder of images that rows name by path, `tell_labels` lets it
        say how many rows of each label its visits train on, `settings` whatever else
        agent.toml may say, by section, as in `{"device": {"threads": 1}, "limits": {"memory_gb": 2}}`. `home` is its directory, by default
        one that goes with the program.
        Raises `ConfigError` before the token is spent, `CoordinatorSaid` (`token_used`, `agent_name_taken`, …), `Unreachable`, `NotStarted`.
        """
        place = Place(home, "fedagent")
        directory, address = Home(place.home), address_of(coordinator_url)
        check_new(directory)
        values = tomllib.loads(template(address, str(Path(data).expanduser().resolve()), run_patterns(list(runs))))
        values["data"][ONLY] |= {"columns": dict(columns)} if columns else {}
        values["data"][ONLY] |= {"images": str(Path(images).expanduser().resolve())} if images is not None else {}
        values["data"][ONLY] |= {"tell_labels": True} if tell_labels else {}
        for section, entries in (settings or {}).items():
            values[section] = {**values.get(section, {}), **entries}
        if settings_there(directory) not in (None, directory.parsed(values)):
            raise ConfigError(
                f"{directory.config} is there already, stays as it is, and says something else: move it away, or name another home"
            )
        enrol(directory, address, token, name, dumps(values))
        return cls._at(place, log, environment, timeout_s)

    @classmethod
    def at(
        cls, home: Path | str, *, log: Path | str | None = None, environment: Mapping[str, str] | None = None, timeout_s: float = 120
    ) -> Self:
        """Start the agent that is enrolled in a home. Raises `NotEnrolled`, `ConfigError`, `NotStarted`."""
        return cls._at(Place(home, "fedagent"), log, environment, timeout_s)

    @classmethod
    def _at(cls, place: Place, log: Path | str | None, environment: Mapping[str, str] | None, timeout_s: float) -> Self:
        words = ["run", "--home", str(place.home)]
        process = Process("fedcybgd.agent.cli", words, Path(log or place.home / "agent.log"), {**os.environ, **(environment or {})})
        made = cls(place, process, timeout_s)
        made.start()
        return made

    def start(self, *, wait: bool = True) -> Self:
        """Start again after `stop` or `kill`; `wait` until it waits for work, as it does once a coordinator answers.

        Raises `NotEnrolled`, `ConfigError`, `NotStarted`.
        """
        directory = Home(self.home)
        directory.load_config()
        self.name = credentials.load(directory).name
        self._process.start()
        if wait:
            self._process.wait_until(self._at_work, f"agent {self.name}", self._timeout_s)
        return self

    def _at_work(self) -> bool:
        """It has said of itself that it waits or works; the coordinator has seen it then."""
        try:
            status = json.loads(Home(self.home).status.read_text())
        except (OSError, ValueError):
            return False
        return status["pid"] == self.pid and status["state"] not in ("stopped", "coordinator unreachable")
