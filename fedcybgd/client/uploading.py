"""Sends the files of a model's directory, each from where the coordinator says that it goes on."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from fedcybgd.client.connection import Connection, segment
from fedcybgd.client.errors import AnswerInvalid, BodyLimited, CoordinatorAway, FileUnusable, Refused
from fedcybgd.client.model_files import files_of
from fedcybgd.shared.contract.assignments import UploadOffset
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.model_uploads import ModelFile, ModelFileView, ModelUploadRequest, ModelUploadView
from fedcybgd.shared.contract.words import problem_in_words

PIECE = 16 << 20
"""Bytes of one request: what a proxy holds back until it has all of it is sent again after a cut."""
SMALLEST = 16 << 10
"""What a proxy takes at the least: below, a person has to raise its limit."""
SHORT = 1 << 20
"""Pieces are not made smaller than this because of cuts alone."""
CHUNK = 1 << 20
PAUSE_S = 1.0


class UploadProgress(NamedTuple):
    """How far an upload is."""

    phase: Literal["reading", "sending"]
    done: int
    """bytes, with those that had arrived before"""
    size: int


Told = Callable[[UploadProgress], None]


class Piece:
    """How many bytes get through in one request, as far as is known."""

    def __init__(self) -> None:
        self.size = PIECE

    def halve(self, tried: int, least: int) -> bool:
        """Whether smaller ones than the one that was tried are worth a try."""
        if tried > least:
            self.size = max(least, min(self.size, 1 << ((tried - 1).bit_length() - 1)))
        return tried > least


def announced(directory: Path, name: str, told: Told) -> ModelUploadRequest:
    """What is to be uploaded of a directory, with the digests of its files. Raises `FileUnusable`."""
    try:
        paths = files_of(directory)
        sizes, done, files = [path.stat().st_size for path in paths], 0, []
        for path, size in zip(paths, sizes, strict=True):
            told(UploadProgress("reading", done, sum(sizes)))
            files.append(ModelFile(name=path.name, digest=digest_of_file(path), size=size))
            done += size
        told(UploadProgress("reading", done, done))
        return ModelUploadRequest(name=name, files=files)
    except OSError as error:
        raise FileUnusable(f"{error.filename or directory}: {error.strerror or error}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise FileUnusable(f"{directory} cannot be uploaded as {name!r}: {where}: {problem_in_words(problem)}") from error


def send(connection: Connection, directory: Path, view: ModelUploadView, told: Told) -> None:
    """Every file that has not arrived, whole. Raises `Refused`, `CoordinatorAway`, `FileUnusable`."""
    files = {file.digest: file for file in view.files}
    before, piece = sum(file.offset for file in files.values()), Piece()
    size = sum(file.size for file in files.values())
    told(UploadProgress("sending", before, size))
    for file in files.values():
        before -= file.offset
        sent = before

        def here(offset: int, sent: int = sent) -> None:
            told(UploadProgress("sending", sent + offset, size))

        if not file.complete:
            _send_file(connection, directory / file.name, view.id, file, piece, here)
        before += file.size
        told(UploadProgress("sending", before, size))


def _send_file(connection: Connection, path: Path, upload_id: str, file: ModelFileView, piece: Piece, here: Callable[[int], None]) -> None:
    offset, away_since = file.offset, None
    while True:
        length = min(piece.size, file.size - offset)
        try:
            answer = _send_piece(connection, path, upload_id, file, offset, length, here)
            if answer.complete:
                return
            offset, away_since = answer.offset, None
        except Refused as error:
            away_since = None
            if error.code == "offset_mismatch":
                offset = _told_offset(error, file)
            elif error.code == "upload_incomplete":  # somebody else checks it
                time.sleep(PAUSE_S)
            else:
                raise
        except BodyLimited:
            if not piece.halve(length, SMALLEST):
                raise
        except CoordinatorAway as error:
            piece.halve(length, SHORT)  # a proxy may cut a body that is too large, or takes too long, and its answer is not heard
            if away_since is None:
                away_since = time.monotonic()
                connection.notice(f"{error.message}; waiting for it")
            if time.monotonic() - away_since > connection.patience_s:
                raise
            time.sleep(PAUSE_S)


def _send_piece(
    connection: Connection, path: Path, upload_id: str, file: ModelFileView, offset: int, length: int, here: Callable[[int], None]
) -> UploadOffset:
    try:
        with path.open("rb") as opened:
            opened.seek(offset)
            data = opened.read(length)
    except OSError as error:
        raise FileUnusable(f"{path} cannot be read: {error.strerror}") from error
    if len(data) < length:
        raise FileUnusable(f"{path} has become shorter meanwhile; run the command again")

    def body() -> Iterator[bytes]:
        for start in range(0, len(data), CHUNK):
            yield data[start : start + CHUNK]
            here(offset + min(start + CHUNK, len(data)))

    place = f"/model-uploads/{segment(upload_id)}/{file.digest}"
    return connection.put(UploadOffset, place, {"offset": offset}, body(), len(data))


def _told_offset(error: Refused, file: ModelFileView) -> int:
    offset = error.detail.get("offset")
    if not isinstance(offset, int) or not 0 <= offset <= file.size:
        raise AnswerInvalid(f"{file.name} is to go on at byte {offset!r:.40} of {file.size}: that is no place in it") from error
    return offset
