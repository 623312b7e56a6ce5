"""Deltas on their way: appended to what has arrived, resumable at the byte where they stopped."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from fedcybgd.coordinator.domain.admission import DeltaRefused, check_structure
from fedcybgd.coordinator.errors import Conflict, TooLarge
from fedcybgd.coordinator.services.path.trained import DeltaForm
from fedcybgd.coordinator.storage import BlobCorrupt, BlobDamaged, BlobMissing, BlobStore, Uploads
from fedcybgd.coordinator.storage.uploads import NothingArrived
from fedcybgd.shared.contract.errors import HeaderError
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.lossless import PackedError
from fedcybgd.shared.files.safetensors_header import header_of, header_of_chunks


class OffsetMismatch(Conflict):
    """The bytes sent do not follow on those that arrived; `detail.offset` says where to go on."""

    code = "offset_mismatch"


class UploadIncomplete(Conflict):
    code = "upload_incomplete"


class UploadTooLarge(TooLarge):
    code = "delta_too_large"


class Upload:
    """One delta under its (assignment, digest)."""

    def __init__(self, uploads: Uploads, assignment_id: str, digest: str, limit: int) -> None:
        self.digest = digest
        self._uploads, self._key, self._limit = uploads, f"{assignment_id}-{digest}", limit
        self._at = self.offset

    @property
    def offset(self) -> int:
        """Bytes that have arrived and are not in the store yet."""
        return self._uploads.offset(self._key)  # asked once: a repeat of the submission may put it into the store at any moment

    def check(self, offset: int, length: int | None) -> None:
        """Refuse before the first byte what cannot be taken."""
        arrived = self.offset
        if offset != arrived:
            raise OffsetMismatch(f"{arrived} bytes have arrived; send from there", offset=arrived)
        self._at = offset
        if length is not None and offset + length > self._limit:
            raise UploadTooLarge(f"a delta of this assignment has at most {self._limit} bytes, not {offset + length}", limit=self._limit)

    def append(self, data: bytes) -> None:
        """Write the bytes that follow. A repeat that overtakes a request which still hangs writes the same bytes to the same place."""
        if self._at + len(data) > self._limit:
            self._uploads.discard(self._key)
            raise UploadTooLarge(f"a delta of this assignment has at most {self._limit} bytes", limit=self._limit)
        self._uploads.append(self._key, self._at, data)
        self._at += len(data)

    def finish(self, store: BlobStore, form: DeltaForm) -> int:
        """Verify the bytes and the structure, put them into the store, and return their number.

        Raises `BlobCorrupt`, `DeltaRefused` or `UploadIncomplete`; an upload that is wrong is not kept.
        """
        try:
            with self._uploads.open(self._key) as arrived:
                self._check(form, arrived)
            self._uploads.finish(self._key, self.digest)
        except NothingArrived:
            # Never sent, or in the store already: put there before a crash, or a moment ago by a repeat of this request.
            # The store holds more than deltas, so what is found there is judged alike.
            with self._is_there():
                store.touch(self.digest)
                with store.open(self.digest) as kept:
                    self._check(form, kept)
        except (DeltaRefused, BlobCorrupt):
            self._uploads.discard(self._key)
            raise
        with self._is_there():
            return store.size(self.digest)

    @contextmanager
    def _is_there(self) -> Iterator[None]:
        try:
            yield
        except (BlobMissing, BlobDamaged):
            raise UploadIncomplete("nothing of this delta has arrived, or it was spoilt; upload it", offset=0) from None

    def _check(self, form: DeltaForm, file: BinaryIO) -> None:
        try:
            if lossless.begins_packed(file):
                # The limit of the upload bounds what is unpacked as well: a delta grows by packing at the most.
                header = header_of_chunks(lossless.unpacked(file, self._limit), "the delta")
            else:
                header = header_of(file, "the delta")
            check_structure(form.tensors, header, form.codec)
        except (HeaderError, PackedError) as error:
            raise DeltaRefused(f"the delta is no whole safetensors file: {error.message}; upload it again") from error
