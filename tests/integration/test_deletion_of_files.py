"""Exports and held-out files can be deleted: those and no others, and none that something uses."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from fedcybgd import Client
from fedcybgd.coordinator.cli import app
from fedcybgd.coordinator.dashboard.browser import COOKIE
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import Job
from fedcybgd.coordinator.domain.jobs.kinds import JobState
from fedcybgd.coordinator.services.agents.logins import form_token
from fedcybgd.coordinator.sweeper import tidy
from tests.support.browser import logged_in
from tests.support.live import LiveCoordinator
from tests.support.processes import wait_for
from tests.support.visits import Hand, fresh, operator, refused, run_file, together

NOBODYS = "0" * 64


def exported(live: LiveCoordinator, run: str, **how: Any) -> str:
    made = live.operator.send("POST", f"/runs/{run}/exports", params=how).json()["export_id"]
    wait_for(lambda: live.operator.get(f"/runs/{run}/exports/{made}")["ready"])
    return str(made)


def listed(live: LiveCoordinator, run: str) -> list[str]:
    return [one["export_id"] for one in live.operator.every(f"/runs/{run}/exports")]  # type: ignore[index]


@pytest.fixture
def run(live: LiveCoordinator, model: str, hand: Hand) -> str:
    """One that is prepared: it has an export as any."""
    return str(live.create_run(run_file(model, [hand]))["id"])


def uploaded(live: LiveCoordinator, folder: Path) -> str:
    """The digest of a held-out file that nobody else has."""
    (path := folder / f"{fresh('rows')}.jsonl").write_text(json.dumps({"text": f"my card {path.name}", "label": 0}) + "\n")
    return Client(live.url, live.operator_key).held_out.upload(str(path))


def scored_on(digest: str) -> dict[str, Any]:
    return {"held_out": "rows.jsonl", "digest": digest}


def found(live: LiveCoordinator, digest: str) -> Any:
    return next((one for one in live.operator.every("/held-out") if one["digest"] == digest), None)  # type: ignore[index]


def after_days(live: LiveCoordinator, *days: float) -> None:
    for day in days:
        tidy(live.settings, live.database, live.store, utcnow() + timedelta(days=day))


# ---- exports ------------------------------------------------------------------------------------------------------------


@pytest.mark.database_decides
def test_an_export_is_gone_and_the_others_are_not(live: LiveCoordinator, run: str) -> None:
    one, other = exported(live, run), exported(live, run)
    files = {f["name"]: f["digest"] for f in live.operator.get(f"/runs/{run}/exports/{one}")["files"]}
    assert operator(live).post(f"/runs/{run}/exports/{one}/delete").status_code == 204
    assert listed(live, run) == [other]
    for path in (f"/runs/{run}/exports/{one}", f"/runs/{run}/exports/{one}/config.json", f"/runs/{run}/provenance?export={one}"):
        refused(operator(live).get(path), 404, "not_found")
    refused(operator(live).post(f"/runs/{run}/exports/{one}/delete"), 404, "not_found")
    assert any(e["code"] == "export_deleted" and one in e["message"] for e in live.operator.every("/events"))  # type: ignore[index]
    acts = [a["act"] for a in live.operator.every("/audit") if one in a["subject"]]  # type: ignore[index]
    assert "POST /v1/runs/{run}/exports/{export_id}/delete" in acts
    after_days(live, 0, 0.5)
    assert all(live.store.has(digest) for digest in files.values()), "the other export has the same files"
    assert operator(live).post(f"/runs/{run}/exports/{other}/delete").status_code == 204
    after_days(live, 0, 0.5)
    assert not live.store.has(files["README.md"]), "its weights may be those of other runs here"


def test_an_export_that_is_being_made_stays(live: LiveCoordinator, run: str) -> None:
    export = exported(live, run)
    with live.database.transaction() as session:
        session.get_one(Job, export).state = JobState.RUNNING
    try:
        refused(operator(live).post(f"/runs/{run}/exports/{export}/delete"), 409, "export_busy")
        assert listed(live, run) == [export]
    finally:
        with live.database.transaction() as session:
            session.get_one(Job, export).state = JobState.DONE
    with live.database.transaction() as session:
        session.get_one(Job, export).state = JobState.FAILED
    assert operator(live).post(f"/runs/{run}/exports/{export}/delete").status_code == 204


def test_nothing_but_an_export_of_this_run_is_deleted(live: LiveCoordinator, model: str, hand: Hand, run: str) -> None:
    other = str(live.create_run(run_file(model, [hand]))["id"])
    export = exported(live, run)
    with live.database.reading() as session:
        prepares = [job.id for job in session.query(Job).filter(Job.subject == run) if job.id != export]
    assert prepares
    for wrong_run, wrong in ((other, export), (run, prepares[0]), (run, "job_" + "0" * 16), ("no-such-run", export)):
        refused(operator(live).post(f"/runs/{wrong_run}/exports/{wrong}/delete"), 404, "not_found")
    for wrong in ("x", "job_x", "%2e%2e%2f", "%00"):
        assert operator(live).post(f"/runs/{run}/exports/{wrong}/delete").status_code in (400, 404, 405, 422)
    assert listed(live, run) == [export]


# ---- held-out files -----------------------------------------------------------------------------------------------------


@pytest.mark.database_decides
def test_a_held_out_file_is_deleted_when_no_run_has_it(live: LiveCoordinator, model: str, hand: Hand, tmp_path: Path) -> None:
    digest, other = uploaded(live, tmp_path), uploaded(live, tmp_path)
    assert (found(live, digest)["number_of_runs"], found(live, digest)["runs"]) == (0, [])
    run = live.create_run(run_file(model, [hand], evaluate=scored_on(digest)))
    assert (found(live, digest)["number_of_runs"], found(live, digest)["runs"]) == (1, [run["name"]])
    said = refused(operator(live).post(f"/held-out/{digest}/delete"), 409, "held_out_in_use")
    assert run["name"] in said.message
    live.operator.post(f"/runs/{run['id']}/cancel")
    refused(operator(live).post(f"/held-out/{digest}/delete"), 409, "held_out_in_use")
    live.operator.wait(lambda: live.operator.get(f"/runs/{run['id']}"), lambda r: not r["pending_jobs"], every=0.05, limit=60)
    assert operator(live).post(f"/runs/{run['id']}/delete").status_code == 204
    assert operator(live).post(f"/held-out/{digest}/delete").status_code == 204
    assert found(live, digest) is None
    assert found(live, other) is not None
    refused(operator(live).post(f"/held-out/{digest}/delete"), 404, "not_found")
    assert any(e["code"] == "held_out_deleted" and digest in e["message"] for e in live.operator.every("/events"))  # type: ignore[index]
    acts = [(a["act"], a["subject"]) for a in live.operator.every("/audit")]  # type: ignore[index]
    assert ("POST /v1/held-out/{digest}/delete", digest) in acts
    after_days(live, 0, 0.5)
    assert not live.store.has(digest)
    assert live.store.has(other)
    refused(operator(live).post("/runs", json=run_file(model, [hand], evaluate=scored_on(digest))), 422, "held_out_missing")


def test_what_is_no_held_out_file_is_not_there(live: LiveCoordinator, model: str) -> None:
    block = live.operator.get(f"/models/{model}")["blocks"][0]["digest"]
    for digest in (NOBODYS, block):
        refused(operator(live).post(f"/held-out/{digest}/delete"), 404, "not_found")
    for wrong in ("x", "0" * 63, "0" * 65, "A" * 64):
        refused(operator(live).post(f"/held-out/{wrong}/delete"), 422, "invalid_request")
    assert live.store.has(block)


@pytest.mark.database_decides
def test_a_run_that_is_made_while_its_file_is_deleted_has_it_or_is_refused(
    live: LiveCoordinator, model: str, hand: Hand, tmp_path: Path
) -> None:
    for _ in range(6):
        digest = uploaded(live, tmp_path)
        spec = run_file(model, [hand], evaluate=scored_on(digest))
        asked = [lambda s=spec: operator(live).post("/runs", json=s), lambda d=digest: operator(live).post(f"/held-out/{d}/delete")]
        made, deleted = together(2, lambda n, asked=asked: asked[n]())
        assert (made.status_code, deleted.status_code) in ((201, 409), (422, 204)), (made.text, deleted.text)
        assert (found(live, digest) is None) == (deleted.status_code == 204)


def post(client: httpx.Client, path: str) -> httpx.Response:
    return client.post(path, data={"form": form_token(client.cookies[COOKIE])})


# ---- for people ---------------------------------------------------------------------------------------------------------


def test_commands_list_and_delete_both(live: LiveCoordinator, run: str, tmp_path: Path) -> None:
    environment = {"FEDCOORD_URL": live.url, "FEDCOORD_OPERATOR_KEY": live.operator_key}

    def says(*words: str, **more: Any) -> str:
        result = CliRunner().invoke(app, [*words], env=environment, **more)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    export, digest = exported(live, run), uploaded(live, tmp_path)
    assert export in says("exports", "list", run)
    assert digest in [one["digest"] for one in json.loads(says("held-out", "list", "--json"))]
    assert digest in says("held-out", "list")
    for words in (["exports", "delete", run, export], ["held-out", "delete", digest]):
        asked = CliRunner().invoke(app, words, env=environment, input="n\n")
        assert (asked.exit_code, "will be gone" in asked.output) == (1, True)
    assert listed(live, run) == [export]
    assert found(live, digest) is not None
    assert json.loads(says("exports", "delete", run, export, "--yes", "--json"))["deleted"] == "export"
    assert json.loads(says("held-out", "delete", digest, "--yes", "--json"))["deleted"] == "held-out file"
    assert listed(live, run) == []
    assert found(live, digest) is None


def test_pages_have_a_button_for_what_can_be_deleted(live: LiveCoordinator, model: str, hand: Hand, run: str, tmp_path: Path) -> None:
    export, free, used = exported(live, run), uploaded(live, tmp_path), uploaded(live, tmp_path)
    live.create_run(run_file(model, [hand], evaluate=scored_on(used)))
    client = logged_in(live, live.operator_key)
    ways = {f"/admin/runs/{run}/exports/{export}/delete": f"/admin/runs/{run}", f"/admin/held-out/{free}/delete": "/admin/models"}
    for way, page in ways.items():
        assert f'action="{way}"' in client.get(page).text
    assert f"/admin/held-out/{used}/delete" not in client.get("/admin/models").text
    viewer = live.operator.post("/operators", {"name": fresh("viewer"), "role": "viewer"})["key"]
    looking = logged_in(live, viewer)
    for way, page in ways.items():
        assert f'action="{way}"' not in looking.get(page).text
    for way in ways:
        assert post(client, way).status_code == 303
    assert listed(live, run) == []
    assert found(live, free) is None
    assert post(client, f"/admin/held-out/{used}/delete").status_code == 409
