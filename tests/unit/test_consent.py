"""Nothing is trained on rows that their owner has not tied to the run, whatever a coordinator offers."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedcybgd.agent import worker
from fedcybgd.agent.client import Client
from fedcybgd.agent.consent import Ambiguous, NotConsented, chosen, patterns, source_for
from fedcybgd.agent.errors import ConfigError
from fedcybgd.agent.policy import Policy
from fedcybgd.agent.settings import Config, Home
from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.manifests import FileRef, Manifest
from fedcybgd.shared.contract.training import TrainSettings
from tests.support.hostile import Answer, Asked, FakeServer, serving


def config(data: dict[str, Any], url: str = "http://127.0.0.1:1") -> Config:
    return Config.model_validate({"coordinator": url, "data": data})


SETS = {
    "grammar": {"path": "cola.csv", "runs": ["cola", "cola-*"]},
    "pairs": {"path": "rte.jsonl", "runs": ["rte"], "columns": {"text": "premise"}},
    "anything": {"path": "all.csv", "runs": ["c*", "demo-?"]},
    "nothing": {"path": "secret.csv"},
}


@pytest.mark.parametrize(("run", "data"), [("cola", "grammar"), ("rte", "pairs"), ("cats", "anything"), ("demo-1", "anything")])
def test_a_run_gets_the_data_that_are_tied_to_it(run: str, data: str) -> None:
    assert chosen(config(SETS).data, run) == data


@pytest.mark.parametrize("run", ["rt", "rte2", "RTE", "demo-10", "demo-", "sentiment", "xcola", "secret.csv", "*", "?"])
def test_and_no_others(run: str) -> None:
    with pytest.raises(NotConsented) as error:
        chosen(config(SETS).data, run)
    assert error.value.code == "not_consented"
    assert not isinstance(error.value, Ambiguous)


def test_where_patterns_of_two_match_neither_is_taken() -> None:
    with pytest.raises(Ambiguous, match="grammar, anything"):
        chosen(config(SETS).data, "cola-2")


def test_two_sets_with_the_same_name_are_not_guessed_at() -> None:
    with pytest.raises(Ambiguous):
        chosen(config({"a": {"path": "a", "runs": ["r"]}, "b": {"path": "b", "runs": ["r"]}}).data, "r")


def test_without_a_word_nothing_is_consented_to(tmp_path: Path) -> None:
    only = config({"path": "rows.csv"})
    assert patterns(only) == []
    with pytest.raises(NotConsented, match=r"\[data.rows\]"):
        source_for(Home(tmp_path), only, "anything")


def test_a_coordinator_is_told_of_the_runs_of_every_set() -> None:
    assert patterns(config(SETS)) == ["c*", "cola", "cola-*", "demo-?", "rte"]


def test_each_set_has_its_own_columns(tmp_path: Path) -> None:
    source = source_for(Home(tmp_path), config(SETS), "rte")
    assert (source.path, source.columns) == (str(tmp_path.resolve() / "rte.jsonl"), {"text": "premise"})


# ---- a coordinator that offers what it likes --------------------------------------------------------------------------


def assignment(run: str) -> LeasedAssignment:
    train = TrainSettings(task="text-classification", num_labels=2, groups=[], batch_size=1, max_length=8, seed=0)
    return LeasedAssignment(
        assignment_id="asg_" + 16 * "0", attempt=1, lease_seconds=60, run_id="run_" + 16 * "0", run_name=run, round=0, cycle=0, block="head",
        manifest=Manifest(files=[FileRef(name="config.json", digest="a" * 64, size=2)], blocks=[]), train=train, max_delta_bytes=10,
    )  # fmt: skip


class Trainer:
    """A training process that must not be asked for anything but to stop."""

    walls = None

    def stop(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the training process was asked to {name}")


def at_work(home: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch, runs: list[str]) -> worker.Worker:
    monkeypatch.setattr(worker, "FAILURE_PAUSE_S", 0.0)
    home.mkdir()
    (home / "rows.jsonl").write_text('{"text": "private", "label": 0}\n')
    agent = worker.Worker(Home(home), config({"path": "rows.jsonl", "runs": runs}, server.url), Client(server.url, "fca_x"))
    agent._trainer = Trainer()  # type: ignore[assignment]
    return agent


def offering(given: LeasedAssignment) -> Any:
    def answer(asked: Asked) -> Answer:
        if "/claim" in asked.path:
            return Answer.json(given.model_dump(mode="json"))
        if asked.path.endswith("/return"):
            return Answer.json({"assignment_id": given.assignment_id, "state": "pending", "reason": None, "attempt": 1})
        return Answer.json({"code": "not_found", "message": "there is no such thing"}, 404)

    return answer


@pytest.mark.parametrize("name", ["evil-run", "good-run2", "Good-run", "a"])
def test_an_assignment_of_another_run_is_given_back_untouched(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = assignment(name)
    with serving(offering(given)) as server:
        agent = at_work(tmp_path / "home", server, monkeypatch, ["good-run", "bank-*"])
        agent._one()
        calls = [a for a in server.asked if a.path.startswith("/v1/assignments")]
    assert [a.path.split("?")[0].rsplit("/", 1)[1] for a in calls] == ["claim", "return"], "nothing was fetched and nothing renewed"
    assert json.loads(calls[0].body)["runs"] == ["bank-*", "good-run"]
    returned = json.loads(calls[1].body)
    assert (returned["reason"], returned["attempt"]) == ("not_consented", given.attempt)
    assert "rows" not in returned["message"]
    status = json.loads(Home(tmp_path / "home").status.read_text())
    assert status["error"].startswith("not_consented: ")
    assert [(r["run"], r["reason"]) for r in status["takes_no_work_of"]] == [(name, "not_consented")]


def test_a_run_with_consent_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = assignment("bank-1")
    with serving(offering(given)) as server:
        agent = at_work(tmp_path / "home", server, monkeypatch, ["good-run", "bank-*"])
        agent._one()
        calls = [a.path.split("?")[0].rsplit("/", 1)[1] for a in server.asked if a.path.startswith("/v1/assignments")]
    assert "a" * 64 in calls


def test_consent_that_was_withdrawn_counts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = assignment("good-run")
    with serving(offering(given)) as server:
        agent = at_work(tmp_path / "home", server, monkeypatch, ["good-run"])
        Home(tmp_path / "home").config.write_text(f'coordinator = "{server.url}"\n[data]\npath = "rows.jsonl"\nruns = []\n')
        agent._one()
        calls = [a for a in server.asked if a.path.startswith("/v1/assignments")]
    assert json.loads(calls[0].body)["runs"] == []
    assert json.loads(calls[1].body)["reason"] == "not_consented"


def test_while_the_settings_are_wrong_no_work_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(offering(assignment("good"))) as server:
        agent = at_work(tmp_path / "home", server, monkeypatch, ["*"])
        Home(tmp_path / "home").config.write_text('coordinator = "http://c"\n[data]\npath = "rows.jsonl"\nruns = "good\n')
        agent._one()
        assert server.asked == []
    assert "is no TOML" in json.loads(Home(tmp_path / "home").status.read_text())["error"]


# ---- settings ----------------------------------------------------------------------------------------------------------


def load(folder: Path, text: str) -> Config:
    home = Home(folder)
    home.config.write_text(text)
    return home.load_config()


def test_a_file_of_an_earlier_version_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"consent: runs are named with the data"):
        load(tmp_path, 'coordinator = "http://c"\n[data]\npath = "a.csv"\n[consent]\nruns = ["*"]\n')


def test_one_data_set_needs_no_name(tmp_path: Path) -> None:
    found = load(tmp_path, 'coordinator = "http://c"\n[data]\npath = "a.csv"\nruns = ["x"]\n')
    assert {name: (d.path, d.runs) for name, d in found.data.items()} == {"rows": ("a.csv", ["x"])}


@pytest.mark.parametrize("runs", ['["[a-z]"]', '["a b"]', '[""]', '"x"', "[1]", '["../x"]'])
def test_what_is_no_pattern_is_refused_with_its_place(tmp_path: Path, runs: str) -> None:
    with pytest.raises(ConfigError, match=r"\n  data\.mine\.runs"):
        load(tmp_path, f'coordinator = "http://c"\n[data.mine]\npath = "a.csv"\nruns = {runs}\n')


def test_more_patterns_than_a_claim_may_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="101 runs and patterns in all, 100 are allowed"):
        load(tmp_path, f'coordinator = "http://c"\n[data.mine]\npath = "a.csv"\nruns = {json.dumps([f"r{i}" for i in range(101)])}\n')


def test_what_the_policy_forbids_is_given_back_untouched_with_rule_and_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = assignment("good-run")
    with serving(offering(given)) as server:
        home = tmp_path / "home"
        agent = at_work(home, server, monkeypatch, ["good-run"])
        agent._policy = Policy.model_validate({"least": {"batch_size": 4}})
        agent._one()
        agent._one()
        calls = [a for a in server.asked if a.path.startswith("/v1/assignments")]
    assert [a.path.split("?")[0].rsplit("/", 1)[1] for a in calls] == ["claim", "return"] * 2, "nothing was fetched and nothing renewed"
    said = json.loads(calls[1].body)
    assert said["reason"] == "policy_refused"
    assert said["message"] == "least.batch_size: a batch of 1; the owner's policy allows no batch of less than 4"
    assert json.loads(calls[2].body)["refuses"] == [given.run_id], "it is not asked for again"
    assert json.loads((home / "status.json").read_text())["takes_no_work_of"][0]["reason"] == "policy_refused"
