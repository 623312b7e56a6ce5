"""Models that come from another machine: resumed where they were cut, bounded before a byte comes, checked, and then as any model."""

import http.client
import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner

from fedcybgd.coordinator.cli import app
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.db.models import ModelUpload
from fedcybgd.coordinator.services.operate import model_uploads
from fedcybgd.coordinator.sweeper import discard_uploads, tidy
from fedcybgd.shared.contract.digests import digest_of
from tests.support import models
from tests.support.live import LiveCoordinator
from tests.support.uploading import added, begin, client, files_of, is_known, put, send_all
from tests.support.visits import fresh, operator, refused, together, wire

DAY = timedelta(days=1)


pytestmark = pytest.mark.usefixtures("nothing_under_way")


# ---- it arrives -----------------------------------------------------------------------------------------------------------


@pytest.mark.database_decides
def test_what_arrives_in_pieces_is_the_model_that_a_directory_gives(live: LiveCoordinator, bert: Path) -> None:
    files, name = files_of(bert), fresh("far")
    whole = live.add_model(fresh("near"), bert)
    begun = begin(live, name, files)
    upload = begun["id"]
    assert [(f["name"], f["offset"], f["complete"]) for f in begun["files"]] == [(n, 0, False) for n in files]
    for data in files.values():
        middle = len(data) // 2
        assert put(live, upload, data[:middle], digest=digest_of(data)).json() == {"offset": middle, "complete": False}
        told = {f["digest"]: f for f in live.operator.get(f"/model-uploads/{upload}")["files"]}
        assert (told[digest_of(data)]["offset"], told[digest_of(data)]["complete"]) == (middle, False)
        assert put(live, upload, data[middle:], middle, digest_of(data)).json() == {"offset": len(data), "complete": True}
    view = live.operator.get(f"/model-uploads/{upload}")
    assert (view["complete"], view["arrived_files"], view["number_of_files"]) == (True, len(files), len(files))
    model = added(live, upload)
    assert (model["state"], model["reason"], model["source"]) == ("ready", None, f"upload {upload}")
    assert [b["digest"] for b in model["blocks"]] == [b["digest"] for b in whole["blocks"]]
    assert not is_known(live, upload)
    refused(operator(live).get(f"/model-uploads/{upload}"), 404, "not_found")
    codes = [e["code"] for e in live.operator.every("/events") if upload in e["message"] or name in e["message"]]
    assert {"model_upload_begun", "model_added"} <= set(codes)
    acts = [
        (a["act"], a["subject"])
        for a in live.operator.every("/audit")
        if upload in a["subject"] or digest_of(files["config.json"]) in a["subject"]
    ]
    assert ("POST /v1/model-uploads/{upload_id}/add", upload) in acts
    assert any(act == "PUT /v1/model-uploads/{upload_id}/{digest}" and subject.endswith(" config.json") for act, subject in acts)


def test_the_same_files_under_the_same_name_are_the_same_upload(live: LiveCoordinator, bert: Path) -> None:
    files, name = files_of(bert), fresh("again")
    one = begin(live, name, files)
    put(live, one["id"], files["config.json"])
    again = begin(live, name, dict(reversed(files.items())))
    assert again["id"] == one["id"]
    assert {f["name"] for f in again["files"] if f["complete"]} == {"config.json"}
    assert begin(live, fresh("other"), files)["id"] != one["id"]


def test_a_repeat_changes_nothing(live: LiveCoordinator, bert: Path) -> None:
    files = files_of(bert)
    upload = send_all(live, fresh("twice"), files)
    before = live.operator.get(f"/model-uploads/{upload}")["files"]
    for data in files.values():
        for offset in (0, 5, len(data), 10**18):
            assert put(live, upload, data[:1], offset, digest_of(data)).json() == {"offset": len(data), "complete": True}
    assert live.operator.get(f"/model-uploads/{upload}")["files"] == before
    assert added(live, upload)["state"] == "ready"
    refused(operator(live).post(f"/model-uploads/{upload}/add"), 404, "not_found")


def test_a_checkpoint_in_several_files_with_one_content_twice(live: LiveCoordinator, llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = models.tiny_llama(tmp_path / "sharded")
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(folder, max_shard_size="20KB")
    shutil.copy(folder / "tokenizer.json", folder / "copy.json")
    model = client(live).models.upload(folder, fresh("sharded"))
    assert model.state == "ready"
    assert [b.digest for b in model.blocks] == [b["digest"] for b in live.add_model(fresh("whole"), llama)["blocks"]]


def test_a_file_whose_blob_was_lost_is_sent_again(live: LiveCoordinator, bert: Path) -> None:
    files = files_of(bert)
    weights = files["model.safetensors"]
    upload = send_all(live, fresh("lost"), files)
    live.store.delete(digest_of(weights))
    view = live.operator.get(f"/model-uploads/{upload}")
    assert [f["name"] for f in view["files"] if not f["complete"]] == ["model.safetensors"]
    refused(operator(live).post(f"/model-uploads/{upload}/add"), 409, "upload_incomplete")
    assert put(live, upload, weights).json() == {"offset": len(weights), "complete": True}
    assert live.store.has(digest_of(weights))
    assert added(live, upload)["state"] == "ready"


# ---- it is cut ------------------------------------------------------------------------------------------------------------


@pytest.mark.database_decides
def test_it_goes_on_after_a_restart_of_the_coordinator(coordinators: Callable[..., LiveCoordinator], bert: Path) -> None:
    first, files = coordinators(), files_of(bert)
    upload = begin(first, "bert", files)["id"]
    assert put(first, upload, files["config.json"]).json()["complete"]
    weights = files["model.safetensors"]
    assert put(first, upload, weights[:1000], digest=digest_of(weights)).json() == {"offset": 1000, "complete": False}
    first.stop()
    second = coordinators()
    told: list[int] = []
    model = client(second).models.upload(bert, "bert", told=lambda far: told.append(far.done) if far.phase == "sending" else None)
    assert model.source == f"upload {upload}"
    assert told[0] == 1000 + len(files["config.json"]), "what had arrived is not sent again"
    assert told == sorted(told)
    assert told[-1] == sum(len(data) for data in files.values())


def test_what_arrived_before_a_cut_is_kept(live: LiveCoordinator, bert: Path) -> None:
    long = b"[" + b" " * (5 << 19) + b"]"
    upload, digest = begin(live, fresh("cut"), {**files_of(bert), "long.json": long})["id"], digest_of(long)
    connection = http.client.HTTPConnection(urlsplit(live.url).netloc, timeout=10)
    connection.putrequest("PUT", f"/v1/model-uploads/{upload}/{digest}?offset=0")
    connection.putheader("Authorization", f"Bearer {live.operator_key}")
    connection.putheader("Content-Length", str(len(long)))
    connection.endheaders(long[: 3 << 19])

    def offset() -> int:
        return int(next(f["offset"] for f in live.operator.get(f"/model-uploads/{upload}")["files"] if f["digest"] == digest))

    there = live.operator.wait(offset, lambda n: n >= 1 << 20, every=0.02, limit=10)
    connection.close()
    refused(put(live, upload, long, 0, digest), 409, "offset_mismatch")
    error = refused(put(live, upload, long, 10**18, digest), 409, "offset_mismatch")
    assert there <= error.detail["offset"] <= 3 << 19
    answer = live.operator.wait(lambda: put(live, upload, long[(at := offset()) :], at, digest), lambda a: a.status_code == 200, limit=10)
    assert answer.json() == {"offset": len(long), "complete": True}


@pytest.mark.database_decides
def test_a_coordinator_that_dies_after_the_last_byte_has_the_file(
    live: LiveCoordinator, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are a blob, and nobody came to write that down."""
    files = files_of(bert)
    upload = begin(live, fresh("dies"), files)["id"]

    def dies(*_: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(model_uploads, "arrived", dies)
        for data in files.values():
            with wire(live, live.operator_key) as once:  # such an answer ends its connection
                assert once.put(f"/model-uploads/{upload}/{digest_of(data)}", content=data).status_code == 500
    with live.database.reading() as session:
        assert not any(file.arrived for file in session.get_one(ModelUpload, upload).files)
    discard_uploads(live.database, live.app.state.uploads)
    assert live.operator.get(f"/model-uploads/{upload}")["complete"]
    data = files["config.json"]
    assert put(live, upload, b"", len(data), digest_of(data)).json() == {"offset": len(data), "complete": True}
    assert live.operator.get(f"/model-uploads/{upload}")["arrived_files"] == 1
    assert added(live, upload)["state"] == "ready"


def test_the_client_goes_on_where_its_add_was_not_answered(live: LiveCoordinator, bert: Path) -> None:
    name = fresh("unanswered")
    first = client(live).models.upload(bert, name)
    again = client(live).models.upload(bert, name)
    assert again.id == first.id
    other = models.tiny_bert(bert.parent / fresh("other"), layers=3)
    with pytest.raises(Exception, match="model_name_taken"):
        client(live).models.upload(other, name)


def test_a_client_waits_for_a_coordinator_that_is_restarted(
    coordinators: Callable[..., LiveCoordinator], bert: Path, tmp_path: Path
) -> None:
    """It goes while a file is half sent."""
    folder = tmp_path / "bert"
    shutil.copytree(bert, folder)
    (folder / "long.json").write_bytes(b"[" + b" " * (3 << 20) + b"]")
    first = coordinators()
    sent: list[int] = []

    def restart(far: Any) -> None:
        if far.phase == "sending" and far.done > 1 << 20 and not sent:
            sent.append(far.done)
            first.stop()
            again = coordinators()
            going.connection._http.base_url = httpx.URL(f"{again.url}/v1")
            going.connection._http.headers["Authorization"] = f"Bearer {again.operator_key}"

    going = client(first)
    assert going.models.upload(folder, "bert", told=restart).state == "ready"
    assert sent


@pytest.mark.database_decides
def test_two_who_send_the_same_at_once_make_one_model(live: LiveCoordinator, bert: Path) -> None:
    name = fresh("both")
    found = together(4, lambda _: client(live).models.upload(bert, name))
    assert len({model.id for model in found}) == 1
    assert {model.state for model in found} == {"ready"}
    assert len([m for m in live.operator.every("/models") if m["name"] == name]) == 1  # type: ignore[index]


@pytest.mark.database_decides
def test_two_who_send_one_file_at_once_have_it_once(live: LiveCoordinator, bert: Path) -> None:
    files = files_of(bert)
    weights = files["model.safetensors"]
    upload = begin(live, fresh("race"), files)["id"]
    answers = together(6, lambda _: put(live, upload, weights))
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert any(answer.status_code == 200 for answer in answers)
    assert put(live, upload, b"", len(weights), digest_of(weights)).json()["complete"]
    with live.database.reading() as session:
        assert [f.name for f in session.get_one(ModelUpload, upload).files if f.arrived] == ["model.safetensors"]


# ---- what becomes of it -----------------------------------------------------------------------------------------------------


@pytest.mark.database_decides
def test_an_upload_whose_import_fails_stays_and_its_files_serve_the_next(live: LiveCoordinator, bert: Path) -> None:
    files, name = files_of(bert), fresh("mended")
    good = files["config.json"]
    bad = json.dumps({**json.loads(good), "hidden_size": 64}).encode()
    upload = send_all(live, name, {**files, "config.json": bad})
    model = added(live, upload)
    assert model["state"] == "failed"
    assert str(live.settings.home) not in model["reason"]
    assert is_known(live, upload)
    again = begin(live, name, files)
    assert [f["name"] for f in again["files"] if not f["complete"]] == ["config.json"]
    assert put(live, again["id"], good).json()["complete"]
    assert added(live, again["id"])["state"] == "ready"


@pytest.mark.parametrize("spoilt", ["config.json", "tokenizer.json"])
def test_a_refusal_names_the_file_and_no_place_on_the_machine(live: LiveCoordinator, bert: Path, spoilt: str) -> None:
    name = fresh("spoilt")
    model = added(live, send_all(live, name, {**files_of(bert), spoilt: b"[" * 1000}))
    assert model["state"] == "failed"
    assert name in model["reason"]
    assert "upl_" not in model["reason"]
    assert str(live.settings.home) not in model["reason"]
    assert "fedcoord-" not in model["reason"]


@pytest.mark.database_decides
def test_what_nobody_goes_on_with_expires_and_leaves_nothing(coordinators: Callable[..., LiveCoordinator], bert: Path) -> None:
    live, files = coordinators(), files_of(bert)
    upload = begin(live, "bert", files)["id"]
    put(live, upload, files["config.json"])
    put(live, upload, files["model.safetensors"][:100], digest=digest_of(files["model.safetensors"]))
    now, config = utcnow(), digest_of(files["config.json"])
    for days in (1, 2, 6.9):
        tidy(live.settings, live.database, live.store, now + days * DAY)
        discard_uploads(live.database, live.app.state.uploads)
    assert is_known(live, upload)
    assert live.store.has(config)
    assert live.app.state.uploads.keys()
    for days in (7.1, 8.2):
        tidy(live.settings, live.database, live.store, now + days * DAY)
    discard_uploads(live.database, live.app.state.uploads)
    assert not is_known(live, upload)
    assert not live.store.has(config)
    assert not live.app.state.uploads.keys()
    assert "model_upload_expired" in [e["code"] for e in live.operator.every("/events")]  # type: ignore[index]


def test_what_a_model_was_made_of_goes_when_it_is_there(coordinators: Callable[..., LiveCoordinator], bert: Path) -> None:
    live, files = coordinators(), files_of(bert)
    assert added(live, send_all(live, "bert", files))["state"] == "ready"
    weights = digest_of(files["model.safetensors"])
    assert live.store.has(weights)
    for days in (1, 2):
        tidy(live.settings, live.database, live.store, utcnow() + days * DAY)
    assert not live.store.has(weights)
    discard_uploads(live.database, live.app.state.uploads)
    assert not live.app.state.uploads.keys()
    with live.database.reading() as session:
        assert session.scalar(select(func.count(ModelUpload.id))) == 0


# ---- commands ---------------------------------------------------------------------------------------------------------------


def test_commands_upload_list_and_discard(live: LiveCoordinator, bert: Path, tmp_path: Path) -> None:
    environment = {"FEDCOORD_URL": live.url, "FEDCOORD_OPERATOR_KEY": live.operator_key}

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, ["models", *words], env=environment)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    name = fresh("commanded")
    upload = begin(live, name, {**files_of(bert), "more.json": b"{}"})["id"]
    assert upload in run("uploads")
    assert upload in [one["id"] for one in json.loads(run("uploads", "--json"))]
    run("discard", upload, "--yes")
    assert upload not in run("uploads")
    folder = tmp_path / name
    shutil.copytree(bert, folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "notes").mkdir()
    made = json.loads(run("upload", str(folder), "--json"))
    assert (made["name"], made["state"]) == (name, "ready")
    wrong = CliRunner().invoke(app, ["models", "upload", str(tmp_path)], env=environment)
    assert "no config.json" in str(wrong.exception)
    bare, asked = tmp_path / "bare", len(live.operator.every("/model-uploads"))
    bare.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(folder / file, bare)
    assert "no tokenizer" in str(CliRunner().invoke(app, ["models", "upload", str(bare)], env=environment).exception)
    shutil.copy(folder / "tokenizer_config.json", bare)
    assert "with its vocabulary" in str(CliRunner().invoke(app, ["models", "upload", str(bare)], env=environment).exception)
    assert len(live.operator.every("/model-uploads")) == asked
    (bare / "tokenizer.json").write_text("{}")  # what is in it is seen when all has arrived
    said = str(CliRunner().invoke(app, ["models", "upload", str(bare), "--name", fresh("wordless")], env=environment).exception)
    assert said.startswith("model wordless")
    assert "upl_" not in said
    assert len(live.operator.every("/model-uploads")) == asked + 1
    (folder / "model.safetensors").unlink()
    assert "save_pretrained" in str(CliRunner().invoke(app, ["models", "upload", str(folder)], env=environment).exception)
