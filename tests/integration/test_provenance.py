"""The provenance file: signed, checked by us and by a stranger, with and without the bytes; whatever is changed in it is noticed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from fedcybgd import Client
from fedcybgd.coordinator.backup import backup
from fedcybgd.coordinator.cli import app
from fedcybgd.coordinator.db.base import utcnow
from fedcybgd.coordinator.errors import CoordinatorError
from fedcybgd.coordinator.home import signing_secret
from fedcybgd.coordinator.provenance import ProvenanceInvalid, check
from fedcybgd.coordinator.serve import prepare_home
from fedcybgd.coordinator.services.operate.provenance import pseudonym
from fedcybgd.coordinator.services.records import signing
from fedcybgd.coordinator.settings import Settings
from fedcybgd.shared.contract.errors import FedError
from fedcybgd.shared.contract.provenance import FILE, Provenance
from tests.integration.test_verify import flip, play
from tests.support import provenance_checker
from tests.support.live import LiveCoordinator
from tests.support.visits import refused, wire


class Made(NamedTuple):
    live: LiveCoordinator
    run: str
    export: Path
    blobs: Path
    """flat, by digest"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Any:
    folder = tmp_path_factory.mktemp("provenance")
    live = LiveCoordinator(folder / "home")
    live.add_model("bert", bert)
    run = play(live, "bert")
    Client(live.url, live.operator_key).runs.export(run, folder / "export")
    (folder / "blobs").mkdir()
    for digest, _ in live.store.stored():
        shutil.copy(live.store.path(digest), folder / "blobs" / digest)
    yield Made(live, run, folder / "export", folder / "blobs")
    live.stop()


def told(error: pytest.ExceptionInfo[FedError]) -> str:
    return error.value.code


def test_a_stranger_and_we_find_it_right_with_the_key_of_the_route(made: Made) -> None:
    key = wire(made.live).get("/key").json()
    assert made.live.operator.get("/status")["signing_key"] == key["fingerprint"]
    assert provenance_checker.check(made.export / FILE, key["key"], made.export, made.blobs) == 6
    for given in (key["key"], key["fingerprint"]):
        found = check(made.export / FILE, given, made.export, made.blobs)
        assert (found.made_again, found.export_checked, found.key_was_given) == (6, True, True)
    assert check(made.export / FILE).made_again == 0


def test_agents_are_named_only_where_that_is_asked_for(made: Made) -> None:
    runs = Client(made.live.url, made.live.operator_key).runs
    agents = {a["name"]: a["id"] for a in made.live.operator.get("/agents")}
    run_id = runs.get(made.run).id

    def who(file: Provenance) -> set[str]:
        return {term.agent for version in file.versions for term in version.terms}

    assert who(runs.provenance(made.run, names=True)) == set(agents)
    text = (made.export / FILE).read_text()
    assert who(Provenance.model_validate_json(text)) == {pseudonym(run_id, agent) for agent in agents.values()}
    assert not [word for agent in agents.items() for word in agent if word in text]


def edit(path: Path, change: Callable[[Any], object], target: Path) -> Path:
    value = json.loads(path.read_text())
    change(value)
    target.write_text(json.dumps(value))
    return target


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value that holds no container."""
    found: list[tuple[Any, Any]] = []
    for key in value if isinstance(value, dict) else range(len(value)):
        found += places(value[key]) if isinstance(value[key], (dict, list)) else [(value, key)]
    return found


def another(value: Any) -> Any:
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1")
    return value + 1 if isinstance(value, int) else 7


def test_no_field_of_it_can_be_changed(made: Made, tmp_path: Path) -> None:
    original = (made.export / FILE).read_text()
    total = len(places(json.loads(original)))
    assert total > 100
    for number in range(total):
        value = json.loads(original)
        container, key = places(value)[number]
        old = container[key]
        container[key] = another(old)
        (tmp_path / FILE).write_text(json.dumps(value))
        with pytest.raises(FedError) as error:
            check(tmp_path / FILE)
        assert told(error) in ("signature_invalid", "provenance_invalid"), (key, old)
    for spoil in (lambda f: f["versions"].pop(), lambda f: f.update(more=1), lambda f: f["export"]["files"].pop(0)):
        with pytest.raises(FedError) as error:
            check(edit(made.export / FILE, spoil, tmp_path / FILE))
        assert told(error) in ("signature_invalid", "provenance_invalid")


def resigned(made: Made, change: Callable[[Any], object], target: Path) -> Path:
    """As a coordinator would write that lies, or whose database was changed."""
    edit(made.export / FILE, change, target)
    file = Provenance.model_validate_json(target.read_text())
    with made.live.database.reading() as session:
        key = signing.newest(session)
        assert key is not None
        signature = signing.sign(key, signing_secret(made.live.settings), file.signed())
    target.write_text(file.model_copy(update={"signature": signature}).model_dump_json())
    return target


def applied(file: Any) -> Any:
    return next(v for v in file["versions"] if v["block"] == "head" and v["version"] == 1)


LIES: list[tuple[str, Callable[[Any], object], str]] = [
    ("other digest", lambda f: applied(f).update(digest="0" * 64), "version_not_reproduced"),
    (
        "other weight",
        lambda f: applied(f)["terms"][0].update(rows=["0.75"] * len(applied(f)["terms"][0]["rows"])),
        "version_not_reproduced",
    ),
    ("weight that is none", lambda f: applied(f)["terms"][0].update(weight="much"), "provenance_invalid"),
    ("unknown rule", lambda f: applied(f).update(aggregate="magic"), "provenance_invalid"),
    ("twice", lambda f: applied(f)["terms"].append(applied(f)["terms"][0]), "delta_applied_twice"),
    ("left out", lambda f: applied(f)["terms"].pop(), "version_not_reproduced"),
    ("gap", lambda f: f["versions"].remove(applied(f)), "version_"),
    ("version twice", lambda f: f["versions"].append(applied(f)), "provenance_invalid"),
    ("other file", lambda f: f["export"]["files"][0].update(digest="0" * 64), "export_differs"),
    ("older weights", lambda f: f["export"]["versions"].update(head=1), "export_differs"),
    ("present that is none", lambda f: f["present"].update(head=9), "provenance_invalid"),
]


@pytest.mark.parametrize(("change", "code"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_a_lie_that_is_signed_is_found_where_the_bytes_are(made: Made, tmp_path: Path, change: Callable[[Any], object], code: str) -> None:
    path = resigned(made, change, tmp_path / FILE)
    blobs = Path(shutil.copytree(made.blobs, tmp_path / "blobs"))
    with pytest.raises(FedError) as error:
        check(path, None, made.export, blobs)
    assert told(error).startswith(code), error.value.message


def test_spoilt_bytes_and_another_key_are_named(made: Made, tmp_path: Path) -> None:
    export, blobs = (Path(shutil.copytree(source, tmp_path / source.name)) for source in (made.export, made.blobs))
    file = Provenance.model_validate_json((export / FILE).read_text())
    with pytest.raises(FedError) as error:
        check(export / FILE, "0" * 64)
    assert told(error) == "signing_key_differs"
    flip(
        blobs
        / (
            delta := file.versions[-1].terms[0].delta
            if file.versions[-1].terms
            else applied(json.loads((export / FILE).read_text()))["terms"][0]["delta"]
        )
    )
    with pytest.raises(FedError) as error:
        check(export / FILE, blobs=blobs)
    assert told(error) == "blob_damaged"
    assert delta in error.value.message
    flip(export / "model.safetensors")
    with pytest.raises(FedError) as error:
        check(export / FILE, export=export)
    assert told(error) == "export_differs"
    assert "model.safetensors" in error.value.message
    for text in ("", "[]", "{", '{"format": "another"}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(FedError) as error:
            check(tmp_path / "bad.json")
        assert told(error) == "provenance_invalid"


FOREIGN = (
    "adapter_config.json",
    "adapter_model.bin",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "sub/model.safetensors",
    ".hidden",
)


def test_every_file_that_an_export_does_not_have_is_named(made: Made, tmp_path: Path) -> None:
    """transformers would load some of them with it, and others tomorrow."""
    export = Path(shutil.copytree(made.export, tmp_path / "export"))
    path = (export / FILE).rename(export / "mine.json")
    (export / "empty").mkdir()
    assert check(path, export=export).export_checked
    path = path.rename(tmp_path / FILE)
    for names in (*[(name,) for name in FOREIGN], FOREIGN, ("mine.json",), ("link",)):
        for name in names:
            (export / name).parent.mkdir(exist_ok=True)
            if name == "link":
                (export / name).symlink_to(made.blobs)
            else:
                (export / name).write_text("{}")
        with pytest.raises(FedError) as error:
            check(path, export=export)
        assert told(error) == "export_differs"
        assert error.value.detail["files"] == sorted(str(export / name) for name in names)
        assert all(name in error.value.message for name in names)
        for name in names:
            (export / name).unlink()


def test_a_backup_has_the_key_sealed_and_not_its_secret(made: Made, tmp_path: Path) -> None:
    backup(made.live.settings, tmp_path / "backup")
    secret = made.live.settings.signing_secret.read_text().strip()
    assert made.live.settings.signing_secret.stat().st_mode & 0o777 == 0o600
    copied = [path for path in (tmp_path / "backup").rglob("*") if path.is_file()]
    assert len(copied) > 10
    assert not [path for path in copied if secret.encode() in path.read_bytes() or bytes.fromhex(secret) in path.read_bytes()]

    # Started on the backup it has the key, and cannot sign with it until the secret is there, or a new key.
    again = LiveCoordinator(tmp_path / "backup")
    try:
        path = f"/runs/{made.run}/provenance"
        client = wire(again, again.operator_key)
        assert wire(again).get("/key").json() == wire(made.live).get("/key").json()
        refused(client.get(path), 409, "signing_key_sealed")
        told = [event["message"] for event in again.operator.get("/status")["last_errors"] if event["code"] == "signing_key_sealed"]
        assert len(told) == 1, "from its start on"
        assert "copy signing.secret" in told[0]
        shutil.copy(made.live.settings.signing_secret, again.settings.signing_secret)
        assert client.get(path).json()["key"] == wire(made.live).get("/key").json()["key"]
        again.settings.signing_secret.unlink()
        with again.database.transaction() as session:
            signing.renew(session, signing_secret(again.settings, make=True), utcnow())
        assert client.get(path).json()["key"] != wire(made.live).get("/key").json()["key"]
    finally:
        again.stop()


def test_what_is_a_path_is_taken_for_a_file_and_for_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (
        ("rows.csv", "text,label\n"),
        ("rows.jsonl", '{"text": "a"}\n{"text": "b"}\n'),
        ("list.txt", "[]"),
        ("run.yaml", "a: 1"),
    ):
        (tmp_path / name).write_text(text)
        for what in (name, str(tmp_path / name)):
            found = CliRunner().invoke(app, ["verify", what])
            assert isinstance(found.exception, ProvenanceInvalid), found.exception
            assert found.exception.message.startswith(f"{what} is no provenance file: that is provenance.json of an export")


def test_a_name_that_no_file_can_have_is_that_of_no_run(tmp_path: Path) -> None:
    prepare_home(Settings(home=tmp_path))
    found = CliRunner().invoke(app, ["verify", f"{'a' * 300}.1", "--home", str(tmp_path)])
    assert isinstance(found.exception, CoordinatorError), found.exception
    assert found.exception.code == "not_found"
