"""Deltas on their way: appended to what has arrived, resumable at the byte where they stopped."""

from collections.abc import Callable
from typing import BinaryIO

from fedcybgd.coordinator.domain.admission import DeltaRefused, check_structure
from fedcybgd.coordinator.errors import Conflict, TooLarge
from fedcybgd.coordinator.services.path.trained import DeltaForm
from fedcybgd.coordinator.storage import BlobCorrupt, BlobDamaged, BlobMissing, BlobStore, Uploads
from fedcybgd.coordinator.storage.uploads import BeingChecked, Elsewhere, NothingArrived, UploadKey
from fedcybgd.shared.contract.errors import HeaderError
from fedcybgd.shared.files import lossless
from fedcybgd.shared.files.lossless import PackedError
from fedcybgd.shared.files.safetensors_header import first_header, header_of


class OffsetMismatch(Conflict):
    """The bytes sent do not follow on those that arrived; `detail.offset` says where to go on."""

    code = "offset_mismatch"


class UploadIncomplete(Conflict):
    code = "upload_incomplete"


class UploadTooLarge(TooLarge):
    code = "delta_too_large"


NOTHING = "nothing of this delta has arrived from you for this assignment, or it was spoilt; upload it"


class Upload:
    """One delta on its way to one assignment, of the agent that holds it; what others sent is nobody's."""

    def __init__(self, uploads: Uploads, assignment_id: str, agent_id: str, digest: str, limit: int) -> None:
        self.digest = digest
        self._uploads, self._key, self._limit = uploads, UploadKey(assignment_id, agent_id, digest), limit
        self._at = 0

    @property
    def offset(self) -> int:
        """Bytes that have arrived and are not in the store yet."""
        return self._uploads.offset(self._key)

    def is_complete(self, store: BlobStore) -> bool:
        """Whether the store has it because it arrived here. What the store has otherwise is not told."""
        return self._uploads.is_kept(self._key) and store.has(self.digest)

    def check(self, offset: int, length: int | None) -> None:
        """Refuse before the first byte what cannot be taken."""
        if offset != (arrived := self.offset):
            raise _from(arrived)
        self._at = offset
        if length is not None and offset + length > self._limit:
            raise UploadTooLarge(f"a delta of this assignment has at most {self._limit} bytes, not {offset + length}", limit=self._limit)

    def append(self, data: bytes, may: Callable[[], None]) -> None:
        """Write the bytes that follow, unless `may` raises. A repeat that overtakes a request which still hangs writes the same bytes to the same place."""
        if self._at + len(data) > self._limit:
            self.discard()
            raise UploadTooLarge(f"a delta of this assignment has at most {self._limit} bytes", limit=self._limit)
        try:
            self._uploads.append(self._key, self._at, data, may)
        except Elsewhere as error:
            raise _from(error.offset) from error
        self._at += len(data)

    def finish(self, store: BlobStore, form: DeltaForm) -> int:
        """Verify the bytes and the structure, put them into the store, and return their number. What is packed is unpacked by the engine, which judges it.

        Nobody can change them meanwhile. Raises `BlobCorrupt`, `DeltaRefused` or `UploadIncomplete`; an upload that is wrong is not kept.
        """
        try:
            with self._uploads.take(self._key) as taken:
                try:
                    with taken.open() as arrived:
                        self._check(form, arrived)
                    taken.keep()
                except (DeltaRefused, BlobCorrupt):
                    taken.drop()
                    raise
        except BeingChecked:
            raise UploadIncomplete("this delta is being checked; submit it again in a moment") from None
        except NothingArrived:
            # Never sent; or kept before a crash, or a moment ago by a repeat of this request, and checked then.
            if not self._uploads.is_kept(self._key):
                raise UploadIncomplete(NOTHING, offset=0) from None
        try:  # as it lies there: with the receipt the agent forgets it
            store.touch(self.digest)
            store.check(self.digest)
            return store.size(self.digest)
        except (BlobMissing, BlobDamaged):
            self.discard()
            raise UploadIncomplete(NOTHING, offset=0) from None

    def discard(self) -> None:
        """Keep nothing of it here; what the store has of it stays."""
        self._uploads.discard(self._key)

    def _check(self, form: DeltaForm, file: BinaryIO) -> None:
        try:
            if lossless.begins_packed(file):
                # The limit of the upload bounds what is unpacked as well: a delta grows by packing at the most.
                size = lossless.unpacked_size(file, self._limit, form.most_chunks)
                file.seek(0)
                header = first_header(lossless.unpacked(file, self._limit), "the delta", form.header_limit, size)
            else:
                header = header_of(file, "the delta", form.header_limit)
            check_structure(form.tensors, header, form.codec)
        except (HeaderError, PackedError) as error:
            raise DeltaRefused(f"the delta is no whole safetensors file: {error.message}; upload it again") from error


def _from(arrived: int) -> OffsetMismatch:
    return OffsetMismatch(f"{arrived} bytes have arrived; send from there", offset=arrived)
