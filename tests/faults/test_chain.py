"""The oracle finds what it is there for: each kind of wrong history is planted once."""

import hashlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save

from tests.faults import chain
from tests.faults.storage import in_folder

RUN = "run_0123"


def store(blobs: Path, **tensors: Any) -> str:
    data = save({name.replace("__", "::"): value for name, value in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest[:2]).mkdir(parents=True, exist_ok=True)
    (blobs / digest[:2] / digest).write_bytes(data)
    return digest


class History:
    """A run of two rounds on one block, as a coordinator would have written it down."""

    def __init__(self, folder: Path) -> None:
        self.blobs = folder / "blobs"
        base = numpy.arange(6, dtype=numpy.float32).reshape(2, 3)
        codes, scales = numpy.array([[1, -2, 3], [0, 5, -7]], numpy.int8), numpy.array([0.1, 0.3], numpy.float32)
        row = numpy.array([[1, 2, 3]], numpy.float32)
        first = base + codes.astype(numpy.float32) * scales[:, None] * numpy.float32(0.5)
        second = first.copy()
        second[1] += row[0]
        self.versions = [store(self.blobs, w=value) for value in (base, first, second)]
        self.deltas = [store(self.blobs, w=codes, w__scales=scales), store(self.blobs, w=row, w__rows=numpy.array([1], numpy.int32))]
        self.applies = [self._apply(number, weight) for number, weight in enumerate((0.5, 1.0))]
        self.assignments = [
            {"id": f"asg_{n}", "state": "accepted", "applied": 1, "delta_digest": self.deltas[n], "round": n, "seat": 0} for n in range(2)
        ]
        self.present = {"name": "layers.0", "version": 2, "digest": self.versions[2]}

    def _apply(self, number: int, weight: float) -> dict[str, Any]:
        block = {"block": "layers.0", "version": number, "digest": self.versions[number]}
        change = {"block": block, "terms": [{"digest": self.deltas[number], "weight": weight}]}
        made = {"block": "layers.0", "version": number + 1, "digest": self.versions[number + 1]}
        return {"payload": {"changes": [change], "assignments": [f"asg_{number}"]}, "result": {"blocks": [made]}}

    def checked(self, folder: Path) -> chain.Findings:
        file = folder / "coordinator.db"
        database = sqlite3.connect(file)
        database.execute("CREATE TABLE job (id, kind, state, subject, payload, result)")
        database.execute("CREATE TABLE assignment (id, run_id, state, applied, delta_digest, round, seat)")
        database.execute("CREATE TABLE block (run_id, name, version, digest)")
        prepared = {"blocks": [{"name": "layers.0", "digest": self.versions[0]}]}
        jobs = [("prepare", {}, prepared), *(("apply", a["payload"], a["result"]) for a in self.applies)]
        for number, (kind, payload, result) in enumerate(jobs):
            values = (f"job_{number}", kind, "done", RUN, json.dumps(payload), json.dumps(result))
            database.execute("INSERT INTO job VALUES (?, ?, ?, ?, ?, ?)", values)
        for row in self.assignments:
            database.execute(
                "INSERT INTO assignment VALUES (:id, :run, :state, :applied, :delta_digest, :round, :seat)", row | {"run": RUN}
            )
        database.execute("INSERT INTO block VALUES (:run, :name, :version, :digest)", self.present | {"run": RUN})
        database.commit()
        database.close()
        return chain.check(chain.opened(str(file)), in_folder(self.blobs).read, RUN)


def test_a_good_history_is_good(tmp_path: Path) -> None:
    found = History(tmp_path).checked(tmp_path)
    assert not found, found
    assert found.versions == 2


def flip(history: History) -> None:
    path = history.blobs / history.versions[1][:2] / history.versions[1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def other_bits(history: History) -> None:
    wrong = store(history.blobs, w=numpy.ones((2, 3), numpy.float32))
    history.applies[1]["result"]["blocks"][0]["digest"] = history.present["digest"] = wrong


def more_weight(history: History) -> None:
    history.applies[0]["payload"]["changes"][0]["terms"][0]["weight"] = 0.25


PLANTED: dict[str, tuple[str, Callable[[History], Any]]] = {
    "a delta that no apply has": ("lost", lambda h: h.assignments.append({**h.assignments[0], "id": "asg_9", "round": 9})),
    "a delta that is not said to be applied": ("lost", lambda h: h.assignments[1].update(applied=0)),
    "a delta that was applied twice": ("doubled", lambda h: h.applies.append(h.applies[1])),
    "two deltas of one seat": ("doubled", lambda h: h.assignments.append({**h.assignments[0], "id": "asg_9"})),
    "a delta that was rejected, and applied": ("different", lambda h: h.assignments[1].update(state="rejected")),
    "another delta than the assignment's": ("different", lambda h: h.assignments[0].update(delta_digest=h.deltas[1])),
    "a version that is missing": ("different", lambda h: h.applies.pop(0)),
    "a block that is not at its last version": ("different", lambda h: h.present.update(version=1, digest=h.versions[1])),
    "a flipped bit": ("different", flip),
    "other bits under their own digest": ("different", other_bits),
    "another weight than was added": ("different", more_weight),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_wrong_history_is_found(tmp_path: Path, planted: str) -> None:
    kind, plant = PLANTED[planted]
    history = History(tmp_path)
    plant(history)
    found = history.checked(tmp_path)
    assert getattr(found, kind), found
