"""Lines of the log for programs: one object each, with what it is about as fields, and nothing of what did not happen."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from fedcybgd.agent.heartbeat import Heartbeat
from fedcybgd.coordinator.db.base import Base, Database, utcnow
from fedcybgd.coordinator.db.models import Agent
from fedcybgd.coordinator.services.records.events import record
from fedcybgd.shared.contract.agents import DeclaredLimits, DeviceInfo
from fedcybgd.shared.host import logs
from fedcybgd.shared.host.logs import JsonFormatter
from tests.support.hostile import Answer, serving
from tests.unit.test_heartbeat import until
from tests.unit.test_residuals import assignment

Lines = Callable[[], list[dict[str, Any]]]


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.written.append(self.format(record))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """What was logged so far."""
    monkeypatch.setattr(logs, "_always", {})  # a command of another test may have said whose process this is
    handler, root = Kept(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in handler.written if "\n" not in line]
    root.removeHandler(handler)
    root.setLevel(before)


def test_fields_hold_within_and_in_threads_that_are_given_them(written: Lines) -> None:
    log = logging.getLogger("fedagent")
    with logs.about(run="intents", round=3):
        with logs.about(block="layers.0", attempt=None):
            log.info("in %s", "it", extra={"about": {"agent": "ann", "message": "not this one"}})
        thread = threading.Thread(target=copy_context().run, args=(log.warning, "beside"))
        thread.start()
        thread.join()
    log.info("after")
    inner, beside, after = ({k: v for k, v in line.items() if k not in ("at", "logger")} for line in written())
    assert inner == {"level": "INFO", "message": "in it", "run": "intents", "round": 3, "block": "layers.0", "agent": "ann"}
    assert beside == {"level": "WARNING", "message": "beside", "run": "intents", "round": 3}
    assert after == {"level": "INFO", "message": "after"}


def test_whatever_a_text_holds_a_line_stays_a_line(written: Lines) -> None:
    hostile = 'a\n{"level": "forged"}\x1b[2J "\u2028'
    try:
        raise ValueError(hostile)
    except ValueError:
        logging.getLogger("x").exception("%s", hostile)
    (line,) = written()
    assert line["message"] == hostile
    assert "ValueError" in line["exception"]
    assert line["level"] == "ERROR"


def test_an_event_is_a_line_once_it_is_true(written: Lines, tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    Base.metadata.create_all(database.engine)
    with database.transaction() as session:
        agent = Agent(
            id="agt_1", name="ann", key_hash="a" * 64, state="active", device=DeviceInfo(), limits=DeclaredLimits(), version="1", enrolled_at=utcnow(),
        )  # fmt: skip
        session.add(agent)
        session.flush()
        record(session, utcnow(), "warning", "delta_rejected", "too far", agent_id="agt_1", run_id="run_1", round=4, block="head")
        assert written() == []

    def fail() -> None:
        with database.transaction() as session:
            record(session, utcnow(), "error", "run_paused", "never so")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    (line,) = written()
    assert line.items() >= {
        "level": "WARNING", "event": "delta_rejected", "message": "delta_rejected: too far", "run_id": "run_1", "round": 4, "block": "head",
        "agent": "ann", "agent_id": "agt_1",
    }.items()  # fmt: skip
    database.close()


def test_a_heartbeat_speaks_of_its_visit(written: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedcybgd.agent import heartbeat
    from fedcybgd.agent.client import Client

    monkeypatch.setattr(heartbeat, "FIRST_S", 0.01)
    with serving(lambda _: Answer.json({"code": "database_away", "message": "later", "detail": {}}, 503)) as server:
        with logs.about(run="intents", block="layers.0"):
            beating = Heartbeat(Client(server.url, "fca_x"), assignment(1), lambda: None, lambda: None, lambda: None)
        with beating:
            until(written)
    assert {(line.get("run"), line.get("block")) for line in written() if line["logger"] == "fedagent.heartbeat"} == {
        ("intents", "layers.0")
    }
