"""The client's nouns: typed answers, lists in pages, what is repeated and what is not, waiting, and run files."""

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from fedcybgd.client.client import Client
from fedcybgd.client.errors import AnswerInvalid, CoordinatorAway, FileUnusable, Refused, RunStopped, TimedOut
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.contract.errors import FedError
from tests.support.hostile import Answer, Asked, serving
from tests.unit.test_client import RUN

# ---- typed answers -----------------------------------------------------------------------------------------------------


def test_lists_are_fetched_page_by_page_and_only_as_far_as_somebody_looks() -> None:
    pages = [[{**RUN, "name": f"run-{number}-{entry}"} for entry in range(2)] for number in range(3)]

    def answer(asked: Asked) -> Answer:
        query = parse_qs(urlsplit(asked.path).query)
        number = int(query.get("after", ["0"])[0])
        more = {"FedCyBGD-Next": str(number + 1)} if number < 2 else {}
        return Answer.json(pages[number], **more)

    with serving(answer) as server:
        found = Client(server.url, "fco_x").runs.list()
        assert [next(found).name, next(found).name] == ["run-0-0", "run-0-1"]
        assert len(server.asked) == 1
        assert [run.name for run in found] == ["run-1-0", "run-1-1", "run-2-0", "run-2-1"]
        assert len(server.asked) == 3


def test_what_is_refused_has_the_coordinators_code_message_and_detail() -> None:
    body = {"code": "nobody_ready", "message": "nobody is there", "detail": {"silent": ["a"]}}
    with serving(lambda _: Answer.json(body, 409)) as server, pytest.raises(Refused) as refused:
        Client(server.url, "fco_x").runs.start("mine")
    assert (refused.value.code, refused.value.message, refused.value.detail) == tuple(body.values())
    assert refused.value.status == 409
    assert str(refused.value) == "nobody is there [nobody_ready]"


@pytest.mark.parametrize("answer", [{"id": 1}, [], {**RUN, "rounds_done": "many"}, "x", None])
def test_an_answer_of_another_shape_names_what_is_wrong(answer: object) -> None:
    with serving(lambda _: Answer.json(answer)) as server, pytest.raises(AnswerInvalid, match="does not know"):
        Client(server.url, "fco_x").runs.get("mine")


def test_an_answer_of_a_newer_coordinator_is_read() -> None:
    with serving(lambda _: Answer.json({**RUN, "yet_unknown": {"a": 1}})) as server:
        assert Client(server.url, "fco_x").runs.get("mine").created_at.year == 2026


@pytest.mark.parametrize("name", ["a?b", "a#b", "a b", "ä"])
def test_a_name_stays_one_part_of_the_path(name: str) -> None:
    with serving(lambda _: Answer.json(RUN)) as server:
        Client(server.url, "fco_x").runs.get(name)
        assert unquote(server.asked[0].path.removeprefix("/v1/runs/")) == name
        assert "/" not in server.asked[0].path.removeprefix("/v1/runs/")


# ---- weather ------------------------------------------------------------------------------------------------------------


def away_then(*then: Answer) -> Any:
    """One answer, then a proxy's page twice, then the others."""
    return iter([Answer.json([]), Answer.page(502), Answer.json({"code": "database_away", "message": "later"}, 503), *then])


def test_what_changes_nothing_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    plan = {"run": "a", "model": "b", "prepared": False, "rounds": 1, "visited": [], "problems": [], "hours": None, "agents": []}
    calls: list[tuple[Any, object]] = [
        (lambda c: c.runs.get("mine"), RUN),
        (lambda c: c.runs.plan({"name": "a", "model": "b", "task": {"kind": "causal-lm"}}), plan),
        (lambda c: list(c.runs.list()), [RUN]),
    ]
    for call, last in calls:
        answers = away_then(Answer.json(last))
        with serving(lambda _, answers=answers: next(answers)) as server:
            client = Client(server.url, "fco_x")
            notices: list[str] = []
            client.connection.notice = notices.append
            assert list(client.agents.list()) == []
            call(client)
            assert len(server.asked) == 4
            assert len(notices) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.runs.start("mine"), lambda c: c.runs.cancel("mine"), lambda c: c.agents.token(), lambda c: c.agents.revoke("a"),
        lambda c: c.models.begin("/m", "m"), lambda c: c.runs.create({"name": "a", "model": "b", "task": {"kind": "causal-lm"}}),
    ],
)  # fmt: skip
def test_what_changes_something_is_sent_once(call: Any) -> None:
    answers = away_then()
    with serving(lambda _: next(answers)) as server:
        client = Client(server.url, "fco_x")
        assert list(client.agents.list()) == []
        with pytest.raises(CoordinatorAway):
            call(client)
        assert len(server.asked) == 2


def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([Answer.json([])])
    with serving(lambda _: next(answers, Answer.page(503))) as server:
        client = Client(server.url, "fco_x", patience_s=0.5)
        client.connection.notice = lambda _: None
        assert list(client.agents.list()) == []
        with pytest.raises(CoordinatorAway):
            client.status()


# ---- waiting for a run --------------------------------------------------------------------------------------------------


def a_run_that(*states: dict[str, Any]) -> Any:
    """Is in these states one after another, and stays in the last one."""
    left = [{**RUN, **state} for state in states]
    return serving(lambda _: Answer.json(left.pop(0) if len(left) > 1 else left[0]))


def test_waiting_ends_with_the_last_measurement() -> None:
    with a_run_that({"state": "running"}, {"pending_jobs": 1, "rounds_done": 4}, {"rounds_done": 5}) as server:
        assert Client(server.url, "fco_x").runs.wait("mine", every_s=0.01).rounds_done == 5
        assert len(server.asked) == 3


@pytest.mark.parametrize("state", ["failed", "cancelled", "paused"])
def test_what_cannot_come_any_more_is_not_waited_for(state: str) -> None:
    with a_run_that({"state": "running"}, {"state": state, "reason": "because"}) as server:
        client = Client(server.url, "fco_x")
        with pytest.raises(RunStopped, match=f"{state}: because") as stopped:
            client.runs.wait("mine", every_s=0.01)
        assert stopped.value.detail["state"] == state
        if state != "paused":
            with pytest.raises(RunStopped):
                client.runs.wait("mine", lambda run: run.rounds_done == 99, every_s=0.01)


def test_a_condition_of_ones_own_and_a_limit() -> None:
    with a_run_that({"state": "running", "rounds_done": 0}, {"state": "running", "rounds_done": 2}) as server:
        client = Client(server.url, "fco_x")
        assert client.runs.wait("mine", lambda run: run.rounds_done == 2, every_s=0.01).state == "running"
        with pytest.raises(TimedOut):
            client.runs.wait("mine", lambda run: run.rounds_done == 3, every_s=0.01, timeout_s=0.05)


# ---- run files -------------------------------------------------------------------------------------------------------------

VALUES: dict[str, Any] = {"name": "mine", "model": "bert", "task": {"kind": "causal-lm"}, "evaluate": {"held_out": "rows.jsonl"}}


@pytest.mark.parametrize("kind", ["path", "text", "mapping", "run file"])
def test_a_run_is_created_from_whatever_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "run.yaml").write_text(json.dumps(VALUES))
    monkeypatch.chdir(tmp_path.parent if kind in ("path", "text") else tmp_path)
    given = {
        "path": tmp_path / "run.yaml", "text": str(tmp_path / "run.yaml"), "mapping": VALUES, "run file": RunFile.model_validate(VALUES)
    }[kind]  # fmt: skip
    with serving(lambda asked: Answer.json({} if asked.method == "PUT" else RUN)) as server:
        assert Client(server.url, "fco_x").runs.create(given).id == RUN["id"]
        upload, creation, _ = server.asked
        assert upload.path == f"/v1/held-out/{digest_of(upload.body)}?name=rows.jsonl"
        assert upload.body == b'{"text": "a"}\n'
        assert json.loads(creation.body)["evaluate"]["digest"] == digest_of(upload.body)


def test_a_wrong_mapping_names_each_field() -> None:
    with pytest.raises(FedError) as wrong:
        Client("http://127.0.0.1:1", "fco_x").runs.create(
            {"name": "mine", "model": "bert", "task": {"kind": "causal-lm"}, "train": {"stepz": 1}}
        )
    assert wrong.value.code == "run_file_invalid"
    assert wrong.value.message == "train.stepz: there is no such field"


def test_a_held_out_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileUnusable, match=r"evaluate.held_out: there is no file rows.jsonl"):
        Client("http://127.0.0.1:1", "fco_x").runs.create(VALUES)
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(FileUnusable, match=r"evaluate.held_out: rows.jsonl is a directory; name the file"):
        Client("http://127.0.0.1:1", "fco_x").runs.create(VALUES)
