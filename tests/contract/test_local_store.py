"""What a crash leaves in the directory of the local store."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedcybgd.coordinator.storage.local import LEFTOVER_AFTER_S, LocalBlobStore
from tests.contract.test_blob_store import DATA, DIGEST, put


class TestLocalBlobStore:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        LocalBlobStore(tmp_path)
        return tmp_path

    def test_what_a_killed_writer_left_is_no_blob(self, root: Path) -> None:
        writer = LocalBlobStore(root).writer()
        writer.write(DATA)  # and then the process was killed
        assert len(list((root / "incoming").iterdir())) == 1
        assert not LocalBlobStore(root).has(DIGEST)
        assert put(LocalBlobStore(root)) == DIGEST

    def test_what_a_killed_writer_left_is_swept_when_nobody_can_be_writing_it(self, root: Path) -> None:
        old, fresh = root / "incoming" / "old.part", root / "incoming" / "fresh.part"
        for path in (old, fresh):
            path.write_bytes(DATA)
        os.utime(old, (0, time.time() - LEFTOVER_AFTER_S - 1))
        LocalBlobStore(root)
        assert [p.name for p in (root / "incoming").iterdir()] == ["fresh.part"]

    def test_a_sweep_leaves_a_writer_at_work_alone(self, root: Path) -> None:
        with LocalBlobStore(root).writer() as writer:
            writer.write(DATA[:1000])
            LocalBlobStore(root)
            writer.write(DATA[1000:])
        assert LocalBlobStore(root).path(DIGEST).read_bytes() == DATA

    def test_names_of_blobs_never_leave_the_directory(self, root: Path) -> None:
        put(LocalBlobStore(root))
        assert {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()} == {f"{DIGEST[:2]}/{DIGEST}"}

    def test_scratch_lies_in_the_store_and_goes_with_its_process(self, root: Path) -> None:
        with LocalBlobStore(root).scratch() as folder:
            (folder / "delta").write_bytes(DATA)
            assert folder.parent == root / "incoming"
            os.utime(folder, (1, 1))
            LocalBlobStore(root)
            assert (folder / "delta").exists(), "its process is at work"
        assert list((root / "incoming").iterdir()) == []

    def test_scratch_of_a_killed_process_is_deleted(self, root: Path) -> None:
        script = "import sys, time, pathlib\nfrom fedcybgd.coordinator.storage import open_store\n"
        script += "with open_store(pathlib.Path(sys.argv[1])).scratch() as f:\n    (f / 'delta').write_bytes(b'x')\n    print(f, flush=True)\n    time.sleep(60)"
        with subprocess.Popen([sys.executable, "-c", script, str(root)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            left = Path(process.stdout.readline().strip())
            process.kill()
        assert (left / "delta").exists()
        LocalBlobStore(root)
        assert left.exists(), "it may have been made a moment ago"
        os.utime(left, (1, 1))
        LocalBlobStore(root)
        assert not left.exists()
