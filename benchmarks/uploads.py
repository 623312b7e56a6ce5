"""What it costs a web process to take a delta: its bytes as they arrive, and the checks before the receipt, in a directory and in object storage.

    python -m benchmarks.uploads [--json FILE] [--megabytes 300]

The services themselves on real storages, without HTTP: a packed int8 delta of a matrix of random numbers is appended in pieces of the
best size, then checked and kept, as `submit` does. Processor seconds of this process for a gigabyte, the least of three. Object storage
is a real S3 server where `S3_PROGRAMS` names its programs (`make s3` installs it), else a directory by way of the same library.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.report import arguments, finish
from fedcybgd.coordinator.services.path.trained import DeltaForm
from fedcybgd.coordinator.services.path.upload import Upload
from fedcybgd.coordinator.storage import BlobStore, Uploads, open_store, open_uploads
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.files import lossless
from fedcybgd.shared.tensors.deltas import encode_delta
from tests.support import buckets
from tests.support.bucket_uploads import ObjectBacking

WIDE = 1024
TIMES = 3


def delta(folder: Path, megabytes: float) -> tuple[Path, DeltaForm]:
    """A packed delta of about this size."""
    shape = (max(1, round(megabytes * 1e6 / WIDE)), WIDE)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 1e-3
    save_file(encode_delta({"w": values}, "int8"), folder / "plain", {"codec": "int8"})
    with (folder / "delta").open("wb") as file:
        file.writelines(lossless.pack(folder / "plain"))
    return folder / "delta", DeltaForm({"w": shape}, "int8", 4 * values.numel() + (1 << 20))


@contextmanager
def object_storage(folder: Path) -> Iterator[tuple[Uploads, BlobStore]]:
    with pytest.MonkeyPatch.context() as environment:
        backing = ObjectBacking("s3" if buckets.S3 else "directory", f"sqlite:///{folder / 'coordinator.db'}", folder, environment)
        try:
            yield backing.open()
        finally:
            backing.close()


def taken(uploads: Uploads, store: BlobStore, path: Path, form: DeltaForm, number: int) -> tuple[float, float]:
    """Processor seconds that its bytes took, and its checks."""
    upload = Upload(uploads, f"asg_{number}", "agt_1", digest_of_file(path), form.limit)
    upload.check(0, None)
    began = time.process_time()
    with path.open("rb") as file:
        while piece := file.read(uploads.best_piece):
            upload.append(piece, lambda: None)
    arrived = time.process_time()
    assert upload.finish(store, form) == path.stat().st_size
    return arrived - began, time.process_time() - arrived


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--megabytes", type=float, default=300.0, help="that the delta has")
    given = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        path, form = delta(folder, given.megabytes)
        gigabytes = path.stat().st_size / 1e9
        store = open_store(folder / "blobs")
        with object_storage(folder) as objects:
            for name, (uploads, blobs) in (("directory", (open_uploads(folder / "uploads", store), store)), ("objects", objects)):
                both = [taken(uploads, blobs, path, form, number) for number in range(TIMES)]
                arriving, checked = min(a for a, _ in both) / gigabytes, min(c for _, c in both) / gigabytes
                figures |= {f"{name}_arriving_cpu_s_per_gb": arriving, f"{name}_checked_cpu_s_per_gb": checked}
    finish(figures, {}, given.json)


if __name__ == "__main__":
    main()
