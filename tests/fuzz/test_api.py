"""The whole API as each role, on an instance with a finished run and an export: documented answers only, no 5xx, no traceback.

Single calls of every operation, and chains of calls in which the answers of some become the arguments of others. Half of the names and ids
are real ones.
"""

import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from fedcybgd.coordinator.api import event_stream
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.services.agents import operators
from fedcybgd.shared.contract.words import API, ErrorBody
from tests.support import models
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, finish, start_run

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "4"))
"""of each operation as each role; `make fuzz` takes a hundred times as many"""
ROLES = ("nobody", "agent", "viewer", "operator", "owner")
SETTINGS = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate], database=None,
    stateful_step_count=12,
)  # fmt: skip
MAY_COME_AGAIN = frozenset({503})
"""Documented, and meant: something is away for the moment."""
load_all_checks()


class Instance:
    """A coordinator after some work, and what there is of it."""

    def __init__(self, home: Path) -> None:
        self.live = live = LiveCoordinator(home / "home")
        live.add_model("bert", models.tiny_bert(home / "bert"))
        worker, self.holder = Hand(live, "worker"), Hand(live, "holder")
        done = start_run(live, "bert", [worker], schedule={"blocks": ["layers.0"]})
        finish(live, done, [worker])
        export = live.operator.post(f"/runs/{done}/exports")["export_id"]
        wait_for(lambda: live.operator.get(f"/runs/{done}/exports/{export}")["ready"])
        open_run = start_run(live, "bert", [self.holder])
        held = self.holder.take(open_run)
        view = live.operator.get(f"/runs/{done}")
        self.real: dict[str, list[Any]] = {
            "run": [done, open_run, view["id"]], "assignment_id": [held.assignment_id], "name": ["bert", "worker", "config.json", "owner"],
            "digest": [held.manifest.blocks[0].digest, held.manifest.files[0].digest], "export_id": [export], "run_id": [held.run_id, view["id"]],
            "file": ["config.json"], "attempt": [held.attempt], "model": ["bert"], "agent": ["worker"],
        }  # fmt: skip
        self.keys = {"nobody": None, "agent": self.holder.key, "owner": live.operator_key}
        for role in ("viewer", "operator"):
            self.keys[role] = live.operator.post("/operators", {"name": f"a-{role}", "role": role})["key"]
        self.schema: Any = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
        self.draw = random.Random(0)
        self.answered: set[tuple[str, int]] = set()

    def prepare(self, case: Any, first: bool = False) -> None:
        """Put real names where there are some, all of them the `first` time, and let no claim wait."""
        for values in (case.path_parameters, case.body):
            for name in values if isinstance(values, dict) else ():
                if name in self.real and (first or self.draw.random() < 0.7):
                    values[name] = self.real[name][0] if first else self.draw.choice(self.real[name])
        if case.path.endswith("/claim"):
            case.query = {**dict(case.query or {}), "wait": 0}

    def renew(self, role: str) -> None:
        """Its key may have been replaced, or have expired, by what was called."""
        with self.live.database.transaction() as session:
            if role == "owner":
                self.keys[role] = operators.recover(session, operators.FIRST, utcnow())
            elif role in ("viewer", "operator"):
                self.keys[role] = operators.rotate(session, f"a-{role}", None, utcnow())[1]

    def headers(self, role: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys[role]}"} if self.keys[role] else {}

    def judge(self, role: str, case: Any, response: Any) -> None:
        status, operation = response.status_code, f"{case.method} {case.path}"
        self.answered.add((operation, status))
        documented = {str(code) for code in case.operation.definition.raw["responses"]}
        assert str(status) in documented, f"{operation} answered {status}: {response.text[:300]}"
        assert status < 500 or status in MAY_COME_AGAIN, f"{operation} answered {status}: {response.text[:300]}"
        if status >= 400 and status != 416:
            ErrorBody.model_validate_json(response.content)
        elif status != 416:
            case.validate_response(response, checks=[content_type_conformance, response_schema_conformance])
            if case.path.endswith("/agents/me/key"):
                self.keys[role] = response.json()["key"]


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    made = Instance(tmp_path_factory.mktemp("fuzz"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_stream, "LASTS_S", 0.1)  # nothing of it is judged before its end
        yield made
    made.live.stop()


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    told = [record.getMessage() for record in caplog.get_records("call") if record.exc_info and record.levelno >= logging.ERROR]
    assert told == []


def one_operation(instance: Instance, role: str, operation: Any) -> None:
    called: list[int] = []

    @seed(len(operation.label))
    @SETTINGS
    @given(operation.as_strategy())
    def call(case: Any) -> None:
        instance.prepare(case, first=not called)
        called.append(1)
        instance.judge(role, case, case.call(headers=instance.headers(role)))

    call()


@pytest.mark.parametrize("role", ROLES)
def test_every_operation_answers_as_it_says(instance: Instance, role: str) -> None:
    for found in instance.schema.get_all_operations():
        instance.renew(role)
        one_operation(instance, role, found.ok())
    paths = {operation for operation, _ in instance.answered}
    assert len(paths) > 40


@pytest.mark.parametrize("role", ["agent", "owner"])
def test_chains_of_calls_answer_as_they_say(instance: Instance, role: str) -> None:
    instance.renew(role)

    class Chain(instance.schema.as_state_machine()):  # type: ignore[misc]
        def before_call(self, case: Any) -> None:
            instance.prepare(case)

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"headers": instance.headers(role)}

        def validate_response(self, response: Any, case: Any, *_: Any, **__: Any) -> None:
            instance.judge(role, case, response)

    Chain.run(settings=SETTINGS)


def test_all_of_it_was_reached(instance: Instance) -> None:
    """Not only refusals: exports, files of runs, shards and pages were handed out."""
    good = {operation for operation, status in instance.answered if status < 300}
    assert f"GET {API}/runs/{{run}}/exports/{{export_id}}" in good, sorted(a for a in instance.answered if "exports" in a[0])
    assert f"GET {API}/runs/{{run}}" in good
    assert len(good) > 15, sorted(good)
