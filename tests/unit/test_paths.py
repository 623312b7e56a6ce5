"""Nothing that comes over the wire becomes a path or a URL but a plain name, on either side."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fedcybgd.agent.cache import ShardCache
from fedcybgd.agent.client import Client
from fedcybgd.agent.errors import ManifestInvalid
from fedcybgd.agent.residuals import Residuals
from fedcybgd.client import exports
from fedcybgd.client.connection import Connection
from fedcybgd.client.errors import ClientError
from fedcybgd.shared.contract.agents import ClaimRequest, EnrolAnswer, RunOffer
from fedcybgd.shared.contract.assignments import AddedDelta, LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of
from fedcybgd.shared.files.paths import UnsafeName, inside
from tests.support.hostile import Answer, Asked, serving
from tests.unit.test_outbox import assignment

DATA = b"# written by the coordinator"
DIGEST = digest_of(DATA)
EXPORT = "job_0123456789abcdef"
ODD = ["", ".", "..", "a/b", "../up", "/etc/passwd", "a\\b", "a\0b", "a/", "./a"]


@pytest.mark.parametrize("name", ODD)
def test_a_name_is_one_step_down_or_it_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeName):
        inside(tmp_path, name)


def test_a_link_in_the_place_of_a_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeName, match="is a link"):
        inside(tmp_path, "a")
    assert inside(tmp_path, "b") == tmp_path / "b"


# ---- a hostile coordinator and the operator's machine -----------------------------------------------------------------


def export(url: str, target: Path) -> Any:
    return exports.export(Connection(url, "fco_x"), "r", target, "merged", None, 10)


def hostile(files: list[dict[str, Any]], data: bytes = DATA, export_id: str = EXPORT) -> Any:
    def answer(asked: Asked) -> Answer:
        if asked.method == "POST":
            return Answer.json({"export_id": export_id})
        if asked.path.endswith(f"/exports/{export_id}"):
            return Answer.json({"export_id": export_id, "ready": True, "after_rounds": 1, "files": files})
        return Answer(200, data)

    return serving(answer)


def named(name: str, size: int = len(DATA)) -> dict[str, Any]:
    return {"name": name, "digest": digest_of(DATA), "size": size}


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ["../../up", "..", "/tmp/fed-absolute", ".bashrc", "a/../../up", "..\\up", "a\nb", "", "a" * 200, "é"])
def test_an_export_writes_only_what_an_export_has(tmp_path: Path, name: str) -> None:
    before = everything(tmp_path)
    with hostile([named("config.json"), named(name)]) as server, pytest.raises(ClientError, match="nothing was written"):
        export(server.url, tmp_path / "exp" / "target")
    assert everything(tmp_path) == before
    assert not Path("/tmp/fed-absolute").exists()


@pytest.mark.parametrize("digest", ["../x", "A" * 64, "0" * 63, 5, None])
def test_a_digest_that_is_none_is_refused(tmp_path: Path, digest: object) -> None:
    with hostile([named("config.json") | {"digest": digest}]) as server, pytest.raises(ClientError, match="digest"):
        export(server.url, tmp_path / "target")
    assert everything(tmp_path) == set()


def test_an_export_follows_no_link_in_the_target(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for linked in ("config.json", ".config.json.part"):
        target = tmp_path / f"of{linked}"
        target.mkdir()
        (target / linked).symlink_to(victim)
        with hostile([named("config.json")]) as server, pytest.raises((ClientError, UnsafeName)):
            export(server.url, target)
    assert victim.read_text() == "mine"


def test_an_export_writes_no_more_than_was_announced(tmp_path: Path) -> None:
    with hostile([named("config.json", size=10)], b"x" * 5_000_000) as server, pytest.raises(ClientError, match="more bytes than the 10"):
        export(server.url, tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10


def test_an_export_that_is_honest_is_written(tmp_path: Path) -> None:
    with hostile([named("config.json")]) as server:
        assert export(server.url, tmp_path / "new").files[0].name == "config.json"
        assert all(a.headers["accept-encoding"] == "identity" for a in server.asked if a.path.endswith("config.json"))
    assert (tmp_path / "new" / "config.json").read_bytes() == DATA
    assert everything(tmp_path) == {"new", "new/config.json"}


def test_a_directory_that_cannot_be_made_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with hostile([named("config.json")]) as server, pytest.raises(ClientError, match="choose another directory"):
        export(server.url, tmp_path / "file" / "target")


# ---- a hostile coordinator and an agent -------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["run_id", "assignment_id", "block", "run_name"])
@pytest.mark.parametrize("value", ["/home/victim/model", "../../victim", "..", "run_1/..", "", "[/]", "run_0123456789abcdef\n", None, 7])
def test_an_assignment_with_such_an_id_is_not_taken(field: str, value: object) -> None:
    body = assignment().model_dump(mode="json") | {field: value}
    with serving(lambda asked: Answer.json(body)) as server, pytest.raises(ManifestInvalid, match=field) as refused:
        Client(server.url, "fca_x").claim(ClaimRequest(), 0)
    assert refused.value.assignment_id in ("", assignment().assignment_id)


@pytest.mark.parametrize("where", ["blocks", "dropped", "files", "groups"])
def test_nor_one_that_names_such_a_block_or_file(where: str) -> None:
    body = assignment().model_dump(mode="json")
    manifest, train = body["manifest"], body["train"]
    match where:
        case "blocks":
            manifest["blocks"][0]["block"] = "../model"
        case "dropped":
            manifest["dropped"] = ["/model"]
        case "files":
            manifest["files"] = [named("../config.json")]
        case "groups":
            train["groups"][0]["blocks"] = ["../model"]
    with pytest.raises(ValidationError):
        LeasedAssignment.model_validate(body)


def carried(block: str) -> list[AddedDelta]:
    return [AddedDelta.model_construct(block=block, assignment_id=assignment().assignment_id, digest=DIGEST)]


def test_residuals_lie_under_their_root_whatever_a_run_is_called(tmp_path: Path) -> None:
    victim, left = tmp_path / "victim", tmp_path / "left"
    for folder in (victim, left):
        folder.mkdir()
        (folder / "layers.0.safetensors").write_text(folder.name)
    for run in (str(victim), "../victim", "..", ""):
        kept = Residuals(tmp_path / "residuals", "https://c.example")
        assert kept.of(run, carried("layers.0")) == {}
    kept.keep(assignment().model_copy(update={"run_id": str(victim)}), DIGEST, left)
    assert (victim / "layers.0.safetensors").read_text() == "victim"
    [file] = (tmp_path / "residuals").rglob("*.safetensors")
    assert file.parent.parent.parent == tmp_path / "residuals"
    with pytest.raises(UnsafeName):
        kept.of("run", carried("../../victim/layers.0"))


def test_two_coordinators_do_not_share_residuals(tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    (left / "head.safetensors").write_text("left")
    Residuals(tmp_path / "r", "https://one").keep(assignment(), DIGEST, left)
    assert Residuals(tmp_path / "r", "https://two").of(assignment().run_id, carried("head")) == {}
    assert Residuals(tmp_path / "r", "https://one").of(assignment().run_id, carried("head"))


@pytest.mark.parametrize("digest", ["../x", "/etc/passwd", "..", ""])
def test_the_cache_takes_no_other_name(tmp_path: Path, digest: str) -> None:
    cache = ShardCache(tmp_path / "cache", 10)
    for call in (cache.path, cache.has, lambda d: cache.drop([d]), lambda d: cache.get(d, 1, lambda _: pytest.fail("fetched"))):
        with pytest.raises(UnsafeName):
            call(digest)


@pytest.mark.parametrize("changes", [{"agent_id": "../x"}, {"name": "[/]"}, {"key": "a\r\nX: y"}, {"key": "k" * 300}])
def test_an_enrolment_with_an_odd_answer_is_refused(changes: dict[str, str]) -> None:
    good = {"agent_id": "agt_0123456789abcdef", "name": "a", "key": "fca_x"}
    EnrolAnswer.model_validate(good)
    with pytest.raises(ValidationError):
        EnrolAnswer.model_validate(good | changes)


def test_a_run_that_is_offered_is_named_by_plain_words() -> None:
    good = {"run_id": "run_0123456789abcdef", "name": "r", "state": "running", "task": "causal-lm", "fields": [], "optional_fields": [],
            "num_labels": None, "label_names": None, "max_length": 8, "files": []}  # fmt: skip
    RunOffer.model_validate(good)
    for changes in ({"run_id": "../agents/me/key?"}, {"name": "[/]"}, {"state": "\x1b[2J"}, {"files": [named("../x")]}):
        with pytest.raises(ValidationError):
            RunOffer.model_validate(good | changes)
