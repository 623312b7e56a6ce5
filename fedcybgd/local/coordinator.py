"""`Coordinator.local()`: `fedcoord serve` in a process of its own."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from fedcybgd.client.client import Client
from fedcybgd.local.errors import ExtraMissing, KeyUnknown, NotStarted, SettingUnknown
from fedcybgd.local.place import Place
from fedcybgd.local.process import LocalProcess, Process
from fedcybgd.shared.contract.starting import Ready
from fedcybgd.shared.host import started

KEY = "operator.key"
"""File of a home in which a coordinator leaves the first operator's key; who reads it may read the database beside it, too."""


class Coordinator(LocalProcess):
    """A running coordinator."""

    def __init__(self, place: Place, port: int, key: str | None, process: Process, timeout_s: float) -> None:
        """For `local`; nothing is started yet."""
        super().__init__(place, process, timeout_s)
        self._key = key
        self._client: Client | None = None
        self._port, self.url = port, ""

    @classmethod
    def local(
        cls,
        home: Path | str | None = None,
        port: int = 0,
        *,
        key: str | None = None,
        log: Path | str | None = None,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 120,
        **settings: str | float | Path,
    ) -> Self:
        """Start a coordinator, and return when it answers.

        `home` is its directory, by default one that goes with the program; `port` 0 takes a free one. `settings` are those of
        docs/operating.md in small letters and without FEDCOORD_, as in `engine_threads=2`; of the environment's own FEDCOORD_ variables
        none is used. `key` is needed for a home that another program made. Raises `NotStarted` (`cannot_listen`, `home_taken`,
        `database_unusable`, … or `not_started`), `SettingUnknown`, `ExtraMissing`.
        """
        place = Place(home, "fedcoord")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDCOORD_")}
        chosen = {f"FEDCOORD_{name.upper()}": str(value) for name, value in known(settings).items()}
        process = Process(
            "fedcybgd.coordinator.cli", ["serve"], Path(log or place.home / "coordinator.log"), {**inherited, **chosen, **(environment or {})}
        )  # fmt: skip
        made = cls(place, port, key, process, timeout_s)
        made.start()
        return made

    def start(self) -> Self:
        """Start again after `stop` or `kill`, at the same port. Raises `NotStarted`."""
        with tempfile.TemporaryDirectory(prefix="fedcoord-") as folder:
            file = Path(folder) / "ready.json"
            words = ["--home", str(self.home), "--port", str(self._port), "--ready-file", str(file)]
            self._process.start(words)
            self._process.wait_until(lambda: started.told(file) is not None, "the coordinator", self._timeout_s)
            report = started.told(file)
        if report is None or report.ready is None:
            failed = report.failed if report else None
            self._process.ended()  # only then it has written its last line
            raise NotStarted(failed.message if failed else "", self._process.tail(), failed.code if failed else None)
        self._learn(report.ready)
        return self

    def _learn(self, ready: Ready) -> None:
        self.url, self._client = ready.url, None
        self._port = int(ready.url.rsplit(":", 1)[1])
        if ready.operator_key is not None:
            self._key = ready.operator_key

    @property
    def key(self) -> str:
        """The operator's key. Raises `KeyUnknown`."""
        if self._key is None:
            try:
                self._key = (self.home / KEY).read_text().strip()
            except OSError as error:
                raise KeyUnknown(
                    f"no operator's key can be read from {self.home / KEY}; give one as key=…, or make a new one: "
                    f"fedcoord operators recover --home {self.home}"
                ) from error
        return self._key

    @property
    def client(self) -> Client:
        """A client under its operator's key. Raises `KeyUnknown`."""
        if self._client is None:
            self._client = Client(self.url, self.key)
        return self._client

    def token(self, *, expires_in_s: float = 3600) -> str:
        """A token with which one agent can enrol, once."""
        return self.client.agents.token(expires_in_s=expires_in_s).token


def known(settings: Mapping[str, str | float | Path]) -> Mapping[str, str | float | Path]:
    """Raises `SettingUnknown`, and `ExtraMissing` where the packages of a coordinator are not installed."""
    try:
        from fedcybgd.coordinator.settings import Settings
    except ModuleNotFoundError as error:
        raise ExtraMissing(f"a coordinator needs the package {error.name}: pip install '.[coordinator]'") from error
    names = set(Settings.model_fields) - {"home", "port"}
    if wrong := sorted(set(settings) - names):
        raise SettingUnknown(f"a coordinator has no setting {', '.join(wrong)}; it has {', '.join(sorted(names))}")
    return settings
