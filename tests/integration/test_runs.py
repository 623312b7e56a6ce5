"""Runs that are created: what is wrong with them is said by name, at once or when they are prepared."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedcybgd.shared.contract.digests import digest_of
from tests.support.live import LiveCoordinator
from tests.support.visits import Hand, copy_of, events, fresh, operator, refused, run_file, together, wire


def spoilt(spec: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The run file with `value` at a dotted path."""
    *sections, field = path.split(".")
    inner = spec
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[field] = value
    return spec


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("shedule", {}), ("schedule.cycle", 2), ("schedule.cycles", 0), ("schedule.order", "sideways"), ("schedule.agents", "nobody"),
        ("schedule.blocks", []), ("schedule.reassign_after_s", 1e300), ("schedule.reassign_after_s", float("inf")),
        ("schedule.max_attempts", 0), ("schedule.layers_per_block", 0), ("task.kind", "translation"), ("task.labels", 1),
        ("task.max_length", 1), ("train.learning_rate", 0), ("train.learning_rate", float("nan")),
        ("train.max_grad_norm", float("inf")), ("train.batch_size", "many"), ("train.precision", "int4"),
        ("admission.max_relative_norm", float("inf")), ("admission.max_relative_norm", -1), ("evaluate.every", 0),
        ("evaluate.digest", "xyz"), ("agents", []), ("agents", ["a b"]), ("lease_s", 1), ("lease_s", float("nan")), ("seed", -1),
        ("name", "../x"), ("name", ""), ("model", None),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_and_no_run_is_made(live: LiveCoordinator, model: str, path: str, value: Any) -> None:
    spec = run_file(model, "all")
    name = spec["name"]
    # Python's own JSON, which says NaN and Infinity, as many clients do.
    body = json.dumps(spoilt(spec, path, value))
    answer = operator(live).post("/runs", content=body, headers={"Content-Type": "application/json"})
    error = refused(answer, 422, "invalid_request")
    assert any(p["field"].startswith(f"body.{path}") for p in error.detail["problems"]), error.detail
    refused(operator(live).get(f"/runs/{name}"), 404, "not_found")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": {"kind": "text-classification"}}, "needs `labels`"),
        ({"task": {"kind": "causal-lm", "labels": 3}}, "has no labels"),
        ({"task": {"kind": "text-classification", "labels": ["one", "one"]}}, "two different labels"),
        ({"train": {"steps": 1, "epochs": 1}}, "not both"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(live: LiveCoordinator, model: str, change: dict[str, Any], said: str) -> None:
    error = refused(operator(live).post("/runs", json=run_file(model, "all", **change)), 422, "invalid_request")
    assert said in error.message


@pytest.mark.parametrize("body", ["", "{", "[]", "null", '"run"'])
def test_what_is_no_run_file_makes_no_run(live: LiveCoordinator, body: str) -> None:
    before = len(live.operator.every("/runs"))
    answer = operator(live).post("/runs", content=body, headers={"Content-Type": "application/json"})
    refused(answer, 422, "invalid_request")
    assert len(live.operator.every("/runs")) == before


def test_a_body_that_cannot_be_parsed_is_the_callers_mistake(live: LiveCoordinator) -> None:
    for body, code in (('{"a":' * 5000, "too_deep"), ('{"seed": ' + "9" * 5000 + "}", "http_error"), ("\xff", "http_error")):
        answer = operator(live).post("/runs", content=body.encode("latin-1"), headers={"Content-Type": "application/json"})
        refused(answer, 400, code)


def test_an_unknown_model_makes_no_run(live: LiveCoordinator) -> None:
    spec = run_file("nobody-added-this", "all")
    assert "nobody-added-this" in refused(operator(live).post("/runs", json=spec), 404, "not_found").message
    refused(operator(live).get(f"/runs/{spec['name']}"), 404, "not_found")


@pytest.mark.parametrize("name", ["nobody", "%00", "%0A", "run_0", "x" * 1000, "a%20b"])
@pytest.mark.database_decides
def test_an_unknown_run_is_not_there(live: LiveCoordinator, name: str) -> None:
    for method, path in (("GET", ""), ("GET", "/assignments"), ("POST", "/start"), ("POST", "/cancel"), ("POST", "/exports")):
        answer = operator(live).request(method, f"/runs/{name}{path}")
        refused(answer, *((400, "path_refused") if name in ("%00", "%0A") else (404, "not_found")))


@pytest.mark.database_decides
def test_a_name_is_taken_until_its_run_has_ended(live: LiveCoordinator, model: str, hand: Hand) -> None:
    spec = run_file(model, [hand])
    first = live.create_run(spec)
    for action in ("start", "pause"):
        refused(operator(live).post("/runs", json=spec), 409, "run_name_taken")
        live.operator.post(f"/runs/{first['id']}/{action}")
    assert first["id"] == refused(operator(live).post("/runs", json=spec), 409, "run_name_taken").detail["run_id"]
    live.operator.post(f"/runs/{first['id']}/cancel")
    second = live.create_run(spec)
    assert second["id"] != first["id"]
    assert live.operator.get(f"/runs/{spec['name']}")["id"] == second["id"]
    assert live.operator.get(f"/runs/{first['id']}")["state"] == "cancelled"


@pytest.mark.database_decides
def test_one_name_asked_for_by_eight_at_once_makes_one_run(live: LiveCoordinator, model: str) -> None:
    spec = run_file(model, "all")
    answers = together(8, lambda _: operator(live).post("/runs", json=spec))
    assert sorted(a.status_code for a in answers) == [201] + [409] * 7
    assert {a.json()["code"] for a in answers if a.status_code == 409} == {"run_name_taken"}
    assert len([r for r in live.operator.every("/runs") if r["name"] == spec["name"]]) == 1


def failed(live: LiveCoordinator, spec: dict[str, Any], code: str) -> str:
    """The reason of a run that could not be prepared; it stays as it is, whatever one asks of it."""
    run = live.create_run(spec)
    assert (run["state"], run["prepared"], run["blocks"]) == ("failed", False, [])
    assert code in events(live, run["id"])
    for action in ("start", "pause", "resume", "cancel"):
        refused(operator(live).post(f"/runs/{run['id']}/{action}"), 409, "invalid_transition")
    refused(operator(live).post(f"/runs/{run['id']}/exports"), 409, "run_not_prepared")
    assert live.operator.get(f"/runs/{run['id']}") == run
    return str(run["reason"])


@pytest.mark.parametrize(
    ("schedule", "code", "said"),
    [
        ({"blocks": ["layer"]}, "model_not_partitionable", "'layer' means no block"),
        ({"blocks": ["layers.2"]}, "model_not_partitionable", "'layers.2' means no block"),
        ({"blocks": ["layers.0", "layers.0."]}, "model_not_partitionable", "'layers.0.'"),
        ({"always": ["heads"]}, "model_not_partitionable", "'heads' means no block"),
        ({"always": ["head", "layers.0-0"]}, "run_refused", "layers.0-0"),
        ({"always": []}, "run_refused", "always: [head]"),
        ({"blocks": ["head", "layers"], "always": []}, "run_refused", "always: [head]"),
    ],
)
def test_a_schedule_that_means_nothing_fails_with_the_reason(
    live: LiveCoordinator, model: str, schedule: dict[str, Any], code: str, said: str
) -> None:
    assert said in failed(live, run_file(model, "all", schedule=schedule), code)


def test_rows_longer_than_the_model_has_positions_are_refused(live: LiveCoordinator, model: str) -> None:
    spec = run_file(model, "all")
    spec["task"]["max_length"] = 65
    assert "only 64 positions" in failed(live, spec, "run_refused")


def test_a_fresh_head_may_be_all_that_is_trained(live: LiveCoordinator, model: str) -> None:
    run = live.create_run(run_file(model, "all", schedule={"blocks": ["head"], "always": []}))
    assert (run["state"], run["rounds_total"]) == ("draft", 1)


def held_out(live: LiveCoordinator, data: bytes, name: str = "rows.jsonl") -> dict[str, Any]:
    digest = digest_of(data)
    answer = operator(live).put(f"/held-out/{digest}", params={"name": name}, content=data)
    assert answer.json() == {"digest": digest, "size": len(data)}
    return {"held_out": name, "digest": digest}


GOOD = b'{"text": "my card is lost", "label": 2}\n'


def test_a_held_out_file_is_read_as_the_run_file_says(live: LiveCoordinator, model: str) -> None:
    data = "text;label\nm\u00fc card;1\nlost;3\n".encode("cp1252")
    settings = {"encoding": "cp1252", "separator": ";", "first_label": 1}
    run = live.create_run(run_file(model, "all", evaluate=held_out(live, data, "rows.csv") | settings), start=False)
    assert (run["state"], run["reason"]) == ("draft", None)
    reason = failed(live, run_file(model, "all", evaluate=held_out(live, data, "rows.csv") | {"encoding": "cp1252"}), "data_invalid")
    assert "rows.csv row 2: label 3 is outside 0" in reason


@pytest.mark.parametrize(
    ("data", "name", "said"),
    [
        (b'{"sentence": "lost", "label": 2}\n', "rows.jsonl", "its columns are 'sentence', 'label'"),
        (b"text,intent\nlost,2\n", "rows.csv", "its columns are 'text', 'intent'"),
        (GOOD + b'{"text": "lost", "label": 3}\n', "rows.jsonl", "row 2: label 3 is outside 0"),
        (GOOD + b'{"text": "lost", "label": -1}\n', "rows.jsonl", "row 2: label -1 is outside 0"),
        (GOOD + b'{"text": "lost", "label": "x"}\n', "rows.jsonl", "row 2: the label must be a whole number"),
        (GOOD + b'{"text": "", "label": 1}\n', "rows.jsonl", "row 2: column 'text' must be text that is not empty"),
        (GOOD + b"{\n", "rows.jsonl", "line 2 is no JSON"),
        (b"", "rows.jsonl", "has no rows"),
        (b"text,label\n", "rows.csv", "has no rows"),
        (GOOD, "rows.txt", "cannot tell the format"),
        (GOOD, "rows.parquet", "no Parquet file"),
        (b"\xff\xff", "rows.jsonl", "cannot be read"),
        (GOOD, "rows.jsonl.gz", "cannot be read"),
    ],
)
def test_a_held_out_file_that_does_not_fit_fails_the_run(live: LiveCoordinator, model: str, data: bytes, name: str, said: str) -> None:
    reason = failed(live, run_file(model, "all", evaluate=held_out(live, data, name)), "data_invalid")
    assert said in reason
    assert "/tmp" not in reason or name in reason


def test_held_out_columns_that_are_not_there_fail_the_run(live: LiveCoordinator, model: str) -> None:
    reason = failed(live, run_file(model, "all", evaluate=held_out(live, GOOD) | {"columns": {"text": "question"}}), "data_invalid")
    assert "no column 'question'" in reason


@pytest.mark.parametrize("digest", [None, digest_of(b"nobody uploaded this")])
def test_a_held_out_file_must_be_uploaded_first(live: LiveCoordinator, model: str, digest: str | None) -> None:
    spec = run_file(model, "all", evaluate={"held_out": "rows.jsonl", "digest": digest})
    refused(operator(live).post("/runs", json=spec), 422, "held_out_missing")
    refused(operator(live).get(f"/runs/{spec['name']}"), 404, "not_found")


def test_a_damaged_upload_is_refused_and_takes_nothing_else_with_it(live: LiveCoordinator, model: str) -> None:
    data = GOOD * 3
    evaluate = held_out(live, data)
    wrong = digest_of(b"something else")
    refused(operator(live).put(f"/held-out/{wrong}", params={"name": "rows.jsonl"}, content=data), 422, "digest_mismatch")
    assert live.store.has(evaluate["digest"]), "the same bytes were there already, under their own name"
    assert not live.store.has(wrong)
    unseen = GOOD * 4
    refused(operator(live).put(f"/held-out/{wrong}", params={"name": "rows.jsonl"}, content=unseen), 422, "digest_mismatch")
    assert not live.store.has(digest_of(unseen))
    assert live.create_run(run_file(model, "all", evaluate=evaluate))["state"] == "draft"


@pytest.mark.parametrize("name", ["", "../rows.jsonl", "a/b.csv", ".hidden", "x" * 300, "a b.csv"])
def test_a_held_out_name_is_a_plain_one(live: LiveCoordinator, name: str) -> None:
    data = GOOD + f'{{"text": "{name}", "label": 0}}'.encode()
    refused(operator(live).put(f"/held-out/{digest_of(data)}", params={"name": name}, content=data), 422, "invalid_request")
    assert not live.store.has(digest_of(data))


@pytest.mark.database_decides
def test_the_same_held_out_file_may_come_from_eight_at_once(live: LiveCoordinator) -> None:
    data = GOOD * 7
    path = f"/held-out/{digest_of(data)}"
    answers = together(8, lambda _: operator(live).put(path, params={"name": "rows.jsonl"}, content=data))
    assert [a.status_code for a in answers] == [200] * 8


def test_the_same_model_serves_two_runs_without_a_copy(live: LiveCoordinator, model: str, bert: Path, tmp_path: Path) -> None:
    first, second = (live.create_run(run_file(model, "all")) for _ in range(2))
    shared = {b["digest"] for b in live.operator.get(f"/models/{model}")["blocks"]}
    assert {b["digest"] for b in first["blocks"]} == {b["digest"] for b in second["blocks"]}
    assert {b["digest"] for b in first["blocks"] if b["kind"] != "head"} <= shared
    again = live.add_model(fresh("same"), copy_of(bert, tmp_path / "same"))
    assert {b["digest"] for b in again["blocks"]} == shared


@pytest.mark.database_decides
def test_runs_are_listed_newest_first(live: LiveCoordinator, model: str) -> None:
    made = [live.create_run(run_file(model, "all"))["name"] for _ in range(2)]
    listed = [r["name"] for r in wire(live, live.operator_key).get("/runs").json()]
    assert listed[:2] == made[::-1]


@pytest.mark.database_decides
def test_a_run_file_that_is_tried_again_leaves_one_alarm_and_no_jobs_to_mend(live: LiveCoordinator, model: str) -> None:
    bad, good = run_file(model, "all"), run_file(model, "all")
    bad["name"] = good["name"]
    bad["task"]["max_length"] = 65

    def raised() -> list[dict[str, Any]]:
        return [alarm for alarm in live.operator.get("/status")["alarms"] if alarm["code"] == "run_failed" and alarm["run"] == good["name"]]

    failed_jobs = [alarm for alarm in live.operator.get("/status")["alarms"] if alarm["code"] == "jobs_failed"]
    tries = [live.create_run(bad, start=False)["id"] for _ in range(3)]
    assert [alarm["run_id"] for alarm in raised()] == [tries[-1]]
    live.create_run(good, start=False)
    assert raised() == []
    assert [alarm for alarm in live.operator.get("/status")["alarms"] if alarm["code"] == "jobs_failed"] == failed_jobs
    assert {live.operator.get(f"/runs/{run}")["state"] for run in tries} == {"failed"}, "the list has them all"
