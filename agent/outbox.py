"""Deltas that are trained and not yet received: they survive a restart of the agent."""

import json
import logging
import os
import shutil
from pathlib import Path

from pydantic import BaseModel, ValidationError

from fedcybgd.shared.contract.assignments import LeasedAssignment
from fedcybgd.shared.contract.digests import digest_of_file
from fedcybgd.shared.contract.training import TrainMetrics
from fedcybgd.shared.files.paths import folder_name, inside

log = logging.getLogger("fedagent.outbox")


class Note(BaseModel):
    """What is known of a delta that lies beside it."""

    digest: str
    metrics: TrainMetrics


class Outbox:
    """At most one delta, with what it was made for and for which coordinator."""

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
            file.write(Note(digest=digest, metrics=metrics).model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        aside.replace(note)
        return self.delta_path(assignment), metrics

    def find(self, assignment: LeasedAssignment) -> tuple[Path, TrainMetrics] | None:
        """The delta of exactly this work: same block, same base versions, same settings; the attempt does not matter."""
        path = self.delta_path(assignment)
        note = path.with_suffix(".json")
        if path.is_file() and note.is_file():
            try:
                found = Note.model_validate_json(note.read_text())
                if digest_of_file(path) == found.digest:
                    return path, found.metrics
                log.warning("the delta in %s is damaged; the work is done again", path)
            except ValidationError:
                pass  # written by another version of this agent: the work is done again
        self.clear()
        return None

    def clear(self) -> None:
        for path in self._root.iterdir():
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
