"""The directory that an export goes to: whose it is, so that no run's model is written over another's by mistake; and its files."""

import os
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import urlencode

import httpx
from pydantic import BaseModel, ValidationError

from fedcybgd.client.connection import DAY_S, Connection, segment
from fedcybgd.client.errors import AnswerInvalid, CoordinatorAway, DirectoryTaken, FileUnusable, Refused
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.manifests import ExportView, FileRef
from fedcybgd.shared.contract.operators import ExportRequested
from fedcybgd.shared.contract.provenance import CARD, FILE, Provenance
from fedcybgd.shared.contract.views import RunSummary
from fedcybgd.shared.contract.words import ExportForm
from fedcybgd.shared.files.paths import UnsafeName, inside, open_for_appending

ModelVersion = int | Literal["best"]
"""A model as it was after so many rounds, or when it scored best"""


class Card(BaseModel):
    """What the directory says of itself; `after_rounds` is None while the files are still being fetched."""

    run: str | None = None
    run_id: str | None = None
    model: str | None = None
    after_rounds: int | None = None
    files: dict[str, str] = {}


def claim(directory: Path, run: RunSummary, force: bool) -> frozenset[str]:
    """Take a directory for a run's exports; the files that one before has left there. Raises `DirectoryTaken` where it holds something else
    and `force` is not given."""
    before = frozenset(_owner(directory).files)
    try:
        if directory.exists() and not force and any(directory.iterdir()) and (owner := _owner(directory)).run_id != run.id:
            holds = f"holds the model of run {owner.run}" if owner.run else "is not empty"
            raise DirectoryTaken(f"{directory} {holds}; choose another directory, or give --force to write over it")
        directory.mkdir(parents=True, exist_ok=True)
        write_card(directory, run, None, [])
    except OSError as error:
        raise _unusable(directory, error) from error
    return before


def clear(directory: Path, before: frozenset[str], files: list[FileRef]) -> None:
    """Take away what an export of another form has left: a model and adapters beside each other would be loaded together."""
    for name in before - {file.name for file in files}:
        inside(directory, name).unlink(missing_ok=True)


def write_card(directory: Path, run: RunSummary, after_rounds: int | None, files: list[FileRef]) -> None:
    card = Card(run=run.name, run_id=run.id, model=run.model, after_rounds=after_rounds, files={f.name: f.digest for f in files})
    place = inside(directory, CARD)
    aside = inside(directory, f".{CARD}.part")
    try:  # half a card would be nobody's, and the directory not empty
        aside.write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
        aside.replace(place)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def write_provenance(directory: Path, connection: Connection, run_id: str, export_id: str) -> None:
    """Put the signed file beside the export. Of a coordinator that signs none the export is whole without it."""
    place = inside(directory, FILE)
    try:
        made = connection.read(Provenance, f"/runs/{segment(run_id)}/provenance", {"export": export_id})
        place.write_text(made.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except Refused as error:
        place.unlink(missing_ok=True)
        connection.notice(f"the export has no {FILE}: {error.message}")
    except OSError as error:
        raise _unusable(directory, error) from error


def export(
    connection: Connection, run_id: str, directory: Path, form: ExportForm, version: ModelVersion | None, timeout_s: float
) -> ExportView:
    """Have a run's model joined, and fetch its files. They lie in `directory` itself, or nothing is written at all."""
    path = f"/runs/{segment(run_id)}/exports"
    # Without a word of what is usual: coordinators of earlier versions do not know it.
    said: dict[str, str] = {} if form == "merged" else {"form": form}
    if version is not None:
        said |= {"best": "true"} if version == "best" else {"after_rounds": str(version)}
    path += "/" + segment(connection.do(ExportRequested, f"{path}?{urlencode(said)}" if said else path).export_id)
    try:
        view = connection.wait(partial(connection.read, ExportView, path), lambda v: v.ready, limit=timeout_s)
        targets = [(file, inside(directory, file.name)) for file in view.files]
    except (AnswerInvalid, UnsafeName) as error:
        raise AnswerInvalid(f"{connection.url} names files that no export has; nothing was written: {error.message}") from error
    if isinstance(version, int) and view.after_rounds != version:
        raise AnswerInvalid(
            f"{connection.url} has no exports of older models: this is the one after {view.after_rounds} rounds; upgrade it"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, target in targets:
            connection.patiently(partial(download, connection, f"{path}/{file.name}", target, file.digest, file.size), limit=DAY_S)
    except OSError as error:
        raise _unusable(directory, error) from error
    return view


def download(connection: Connection, path: str, target: Path, digest: str, size: int) -> None:
    """Fetch a file aside, verify it, rename it; an earlier part is resumed. Not a byte more than `size` is written."""
    part = inside(target.parent, f".{target.name}.part")
    with os.fdopen(open_for_appending(part), "ab") as file:
        if part.stat().st_size > size:
            file.truncate(0)
        if (have := part.stat().st_size) < size:
            _receive(connection, path, file, have, size)
    if digest_of_file(part) != digest:
        part.unlink()
        raise FileUnusable(f"{target.name} arrived damaged; run the command again")
    part.replace(target)


def _receive(connection: Connection, path: str, file: BinaryIO, have: int, size: int) -> None:
    # As they are: a proxy that compressed them would make ranges mean something else.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with connection.stream(path, headers) as answer:
            if not answer.is_success and answer.status_code != 416:
                connection.check(connection.whole(answer))
            if answer.status_code != 206:
                have = file.truncate(0)
            for chunk in answer.iter_raw() if answer.is_success else ():  # as it comes: what is buffered would be lost at a cut
                have += len(chunk)
                if have > size:
                    file.truncate(0)
                    raise AnswerInvalid(f"{path} has more bytes than the {size} that were announced; they were thrown away")
                file.write(chunk)
    except httpx.HTTPError as error:
        raise CoordinatorAway(
            f"the transfer from {connection.url} was cut: {error or type(error).__name__}; run the command again, it goes on there"
        ) from error
    if have < size:
        raise CoordinatorAway(f"{path} ended after {have} of {size} bytes; run the command again, it goes on there")


def _owner(directory: Path) -> Card:
    try:
        return Card.model_validate_json((directory / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError, ValidationError):
        return Card()


def _unusable(directory: Path, error: OSError) -> FileUnusable:
    return FileUnusable(f"{error.filename or directory}: {error.strerror or error}; choose another directory")
