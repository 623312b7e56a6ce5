"""The agents of `fedcoord try` are told what the run file counts on; and what is looked at before anything is begun."""

import re
from pathlib import Path
from typing import Any

import pytest

from fedcybgd.client.errors import DirectoryTaken, FileUnusable
from fedcybgd.coordinator.commands import trial
from fedcybgd.coordinator.domain.run_file import checked
from fedcybgd.local.federation import Federation
from fedcybgd.local.rows import Portion, TrialRows
from fedcybgd.local.split import Split
from fedcybgd.shared.host.terminal import Terminal
from tests.support.volumes import small_volume


class Recorded(Federation):
    """Starts nothing."""

    told: list[Any]

    def start_agent(self, *given: Any) -> Any:
        self.told.append(given[-1])


@pytest.mark.parametrize(("head_start", "told"), [("class_means", True), ("fresh", False)])
def test_they_tell_labels_where_a_head_begins_at_class_means(head_start: str, told: bool, tmp_path: Path) -> None:
    spec = checked({
        "name": "r", "model": "m", "task": {"kind": "text-classification", "labels": 3},
        "schedule": {"blocks": ["layers"], "always": ["head"], "wave": 2, "head_start": head_start}, "train": {"steps": 1},
    })  # fmt: skip
    federation = Recorded(tmp_path)
    federation.told = []
    portions = [Portion(name, tmp_path / f"{name}.jsonl", tmp_path / name) for name in ("oslo", "bergen")]
    trial._start(federation, portions, spec, 1)
    assert federation.told == [told, told]


def test_a_place_that_cannot_be_written_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    trial._check_place(there := tmp_path / "a" / "fine-tuned", force=False)
    assert not there.exists()
    with pytest.raises(FileUnusable, match="choose another directory"):
        trial._check_place(Path("/proc/fine-tuned"), force=False)
    with pytest.raises(FileUnusable, match="choose another directory"):
        trial._check_place(Path("/proc"), force=True)
    (tmp_path / "a" / "mine").touch()
    with pytest.raises(DirectoryTaken):
        trial._check_place(tmp_path / "a", force=False)


def test_a_place_without_room_is_named_with_the_bytes_that_are_needed_before_anything_is_written(tmp_path: Path) -> None:
    spec = checked({
        "name": "r", "model": "m", "task": {"kind": "text-classification", "labels": 3}, "schedule": {"blocks": ["layers"]},
        "train": {"steps": 1},
    })  # fmt: skip
    (rows := tmp_path / "rows.jsonl").write_text('{"text": "a", "label": 0}\n' * 6)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").write_bytes(bytes(1000))
    tried = trial.Trial(tmp_path / "run.yaml", spec, str(tmp_path / "m"), TrialRows(rows, spec.task.spec, {}), Split.parsed("iid"), 2, None)
    with small_volume(tmp_path, 1 << 20) as place:
        with pytest.raises(trial.TooLittleRoom) as little:
            trial._tried(tried, place, Terminal(), anchor=False, chaos=False, export=None)
        assert re.search(rf"^{place}: [0-9,]+ bytes and more are needed there, and [0-9,]+ are free; .*TMPDIR", little.value.message)
        assert list(place.iterdir()) == []
