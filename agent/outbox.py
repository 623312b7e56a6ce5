"""Deltas that are trained and not yet received: they survive a restart of the agent, and wait for a coordinator that is away."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ValidationError

from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.training import TrainMetrics
from fedcybgd.shared.files.paths import folder_name, inside
from fedcybgd.shared.files.volumes import settle

log = logging.getLogger("fedagent.outbox")
KEPT_S = 60 * 86_400
"""For as long a delta waits of which the coordinator says neither that it is wanted nor that it is not."""
MOST = 8
"""Deltas that wait beside the one at hand."""


class Note(BaseModel):
    """What is known of a delta that lies beside it."""

    digest: str
    metrics: TrainMetrics
    assignment_id: str = ""


class Outbox:
    """Deltas by what they were made for, and for which coordinator."""

    def __init__(self, root: Path, coordinator: str = "") -> None:
        self._root = root
        self._coordinator = coordinator
        root.mkdir(parents=True, exist_ok=True)

    def delta_path(self, assignment: LeasedAssignment) -> Path:
        return inside(self._root, f"{self._work(assignment)}.safetensors")

    def left_path(self, assignment: LeasedAssignment) -> Path:
        """Directory for what the delta's codec leaves out."""
        return inside(self._root, f"{self._work(assignment)}.left")

    def put(self, assignment: LeasedAssignment, digest: str, metrics: TrainMetrics) -> tuple[Path, TrainMetrics]:
        """Note beside the delta that lies at `delta_path` its digest and the metrics: from now on it is what there is to send."""
        note = self.delta_path(assignment).with_suffix(".json")
        aside = note.with_suffix(".part")
        with aside.open("w") as file:
            file.write(Note(digest=digest, metrics=metrics, assignment_id=assignment.assignment_id).model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        aside.replace(note)
        settle(self._root)
        return self.delta_path(assignment), metrics

    def find(self, assignment: LeasedAssignment) -> tuple[Path, TrainMetrics] | None:
        """The delta of exactly this work: same block, same base versions, same settings; the attempt does not matter."""
        path = self.delta_path(assignment)
        if (found := _note(path.with_suffix(".json"))) is not None and path.is_file():
            if digest_of_file(path) == found.digest:
                return path, found.metrics
            log.warning("the delta in %s is damaged; the work is done again", path)
        self.drop(assignment)
        return None

    def drop(self, assignment: LeasedAssignment) -> None:
        """Delete what there is of this work."""
        self._drop(self._work(assignment))

    def tidy(self, assignment: LeasedAssignment, is_over: Callable[[str], bool]) -> None:
        """Delete what there is of other work and of no use: what was never finished, and deltas of assignments that are over."""
        mine = self._work(assignment)
        others = {path.name.partition(".")[0] for path in self._root.iterdir()} - {mine}
        waiting = {work: note for work in others if (note := _note(inside(self._root, f"{work}.json"))) is not None}
        wanted = [work for work in sorted(waiting, key=self._age) if self._age(work) < KEPT_S and not is_over(waiting[work].assignment_id)]
        for work in others - set(wanted[:MOST]):
            self._drop(work)

    def shrink(self, allowed: int, spared: LeasedAssignment) -> int:
        """Delete the deltas of other work that wait longest until at most so many bytes are left; what is left."""
        mine = self._work(spared)
        sizes: dict[str, int] = {}
        for path in self._root.rglob("*"):
            work = path.relative_to(self._root).parts[0].partition(".")[0]
            sizes[work] = sizes.get(work, 0) + (path.stat().st_size if path.is_file() else 0)
        for work in sorted(sizes.keys() - {mine}, key=self._age, reverse=True):
            if sum(sizes.values()) <= allowed:
                break
            log.warning("a delta that was not sent yet makes room for the work at hand (limits.disk_gb)")
            self._drop(work)
            del sizes[work]
        return sum(sizes.values())

    def _age(self, work: str) -> float:
        try:
            return time.time() - inside(self._root, f"{work}.json").stat().st_mtime
        except FileNotFoundError:
            return KEPT_S

    def _drop(self, work: str) -> None:
        for path in self._root.glob(f"{work}.*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _work(self, assignment: LeasedAssignment) -> str:
        blocks = [(b.block, b.digest, b.codec) for b in assignment.manifest.blocks]
        carried = [delta.model_dump() for delta in assignment.carried]
        how = [assignment.manifest.dropped, assignment.delta_codec, assignment.error_feedback, carried]
        what = [assignment.assignment_id, blocks, how, assignment.train.model_dump(mode="json")]
        return folder_name(self._coordinator, json.dumps(what))


def _note(path: Path) -> Note | None:
    try:
        return Note.model_validate_json(path.read_text())
    except (FileNotFoundError, ValidationError):
        return None  # none, or written by another version of this agent: the work is done again
