"""An upload is looked at while another request puts it into the store."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedcybgd.coordinator.services.path.upload import Upload
from fedcybgd.coordinator.storage import open_store, open_uploads

TOGGLE = "import os, sys\none, other = sys.argv[1:]\nprint(flush=True)\nwhile True:\n    os.rename(one, other)\n    os.rename(other, one)"


@contextmanager
def coming_and_going(path: Path) -> Iterator[None]:
    """A file that is there in one moment and gone in the next, as another process wants it."""
    path.write_bytes(b"1234")
    process = subprocess.Popen([sys.executable, "-c", TOGGLE, path, path.with_name("stored")], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


def test_a_part_that_goes_into_the_store_meanwhile_has_arrived_or_is_gone(tmp_path: Path) -> None:
    digest = "a" * 64
    uploads = open_uploads(tmp_path, open_store(tmp_path / "blobs"))
    with coming_and_going(tmp_path / f"asg-agt-{digest}.part"):
        seen: set[int] = set()
        until = time.monotonic() + 20
        while len(seen) < 2 or time.monotonic() < until - 19:
            assert time.monotonic() < until
            seen.add(Upload(uploads, "asg", "agt", digest, 100).offset)
    assert seen == {0, 4}
