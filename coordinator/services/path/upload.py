"""Deltas on their way: appended to a file aside, resumable at the byte where they stopped."""

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedcybgd.coordinator.domain.admission import DeltaRefused, check_structure
from fedcybgd.coordinator.errors import Conflict, TooLarge
from fedcybgd.coordinator.services.path.trained import DeltaForm
from fedcybgd.coordinator.storage import BlobCorrupt, BlobDamaged, BlobMissing, BlobStore, StoreFull
from fedcybgd.shared.contract.errors import HeaderError
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.lossless import PackedError
from fedcybgd.shared.files.safetensors_header import read_header


class OffsetMismatch(Conflict):
    """The bytes sent do not follow on those that arrived; `detail.offset` says where to go on."""

    code = "offset_mismatch"


class UploadIncomplete(Conflict):
    code = "upload_incomplete"


class UploadTooLarge(TooLarge):
    code = "delta_too_large"


class Upload:
    """One delta under its (assignment, digest)."""

    def __init__(self, folder: Path, assignment_id: str, digest: str, limit: int) -> None:
        assert re.fullmatch(r"[A-Za-z0-9_]+", assignment_id)
        assert re.fullmatch(r"[0-9a-f]{64}", digest)
        self.path = folder / f"{assignment_id}-{digest}.part"
        self.digest = digest
        self._limit = limit
        self._at = self.offset

    @property
    def offset(self) -> int:
        """Bytes that have arrived and are not in the store yet."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:  # asked once: a repeat of the submission may put it into the store at any moment
            return 0

    def check(self, offset: int, length: int | None) -> None:
        """Refuse before the first byte what cannot be taken."""
        if offset != self.offset:
            raise OffsetMismatch(f"{self.offset} bytes have arrived; send from there", offset=self.offset)
        self._at = offset
        if length is not None and offset + length > self._limit:
            raise UploadTooLarge(f"a delta of this assignment has at most {self._limit} bytes, not {offset + length}", limit=self._limit)

    def append(self, data: bytes) -> None:
        """Write the bytes that follow. A repeat that overtakes a request which still hangs writes the same bytes to the same place."""
        if self._at + len(data) > self._limit:
            self.path.unlink(missing_ok=True)
            raise UploadTooLarge(f"a delta of this assignment has at most {self._limit} bytes", limit=self._limit)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
                file.seek(self._at)
                file.write(data)
            self._at += len(data)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFull("the coordinator's disk is full; what arrived is kept, try again later") from error
            raise

    def finish(self, store: BlobStore, form: DeltaForm) -> int:
        """Verify the bytes and the structure, put them into the store, and return their number.

        Raises `BlobCorrupt`, `DeltaRefused` or `UploadIncomplete`; a file that is wrong is not kept.
        """
        try:
            self._check(form, self.path)
            store.adopt(self.path, self.digest)
        except FileNotFoundError:
            # Never sent, or in the store already: put there before a crash, or a moment ago by a repeat of this request.
            # The store holds more than deltas, so what is found there is judged alike.
            with self._is_there():
                store.touch(self.digest)
                self._check(form, store.path(self.digest))
        except (DeltaRefused, BlobCorrupt):
            self.path.unlink(missing_ok=True)
            raise
        with self._is_there():
            return store.size(self.digest)

    @contextmanager
    def _is_there(self) -> Iterator[None]:
        try:
            yield
        except (BlobMissing, BlobDamaged):
            raise UploadIncomplete("nothing of this delta has arrived, or it was spoilt; upload it", offset=0) from None

    def _check(self, form: DeltaForm, path: Path) -> None:
        plain = path
        try:
            if lossless.is_packed(path):
                # The limit of the upload bounds what is unpacked as well: a delta grows by packing at the most.
                plain = self.path.with_name(f"{self.path.stem}-{secrets.token_hex(4)}.unpacked")
                lossless.unpack(path, plain, self._limit)
            check_structure(form.tensors, read_header(plain), form.codec)
        except (HeaderError, PackedError) as error:
            raise DeltaRefused(f"the delta is no whole safetensors file: {error.message}; upload it again") from error
        finally:
            if plain != path:
                plain.unlink(missing_ok=True)
