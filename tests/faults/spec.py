"""The runs that are disturbed: small ones, in every way in which a run may be."""

import hashlib
from pathlib import Path
from typing import Any

from tests.e2e.conftest import write_rows
from tests.support.models import tiny_bert

LEASE_S = 30


def model(folder: Path) -> Path:
    return tiny_bert(folder, layers=3)


def held_out(folder: Path) -> tuple[Path, str]:
    """A file of rows that no agent has, and its digest."""
    path = write_rows(folder / "held-out.jsonl", 99, 32)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def spec(flavour: str, name: str, seed: int, rows: tuple[Path, str] | None = None) -> dict[str, Any]:
    """In a `wave` others may take over what was left lying; runs of the other flavours must end bit-identical whatever happens.

    `whole` averages whole models, `adapters` averages adapters exactly, `corrected` has expanded visits; `feedback` has error feedback, `full`
    is measured and scored besides, on held-out `rows`; `short` is over soon.
    """
    schedule: dict[str, Any] = {"cycles": 3, "blocks": ["layers"], "always": ["pooler", "head"]}
    more: dict[str, Any] = {}
    if flavour == "wave":
        schedule |= {"wave": 2, "wave_deadline_s": 8, "reassign_after_s": 2, "max_attempts": 50}
    if flavour == "whole":
        schedule["cycles"], more = 3, {"method": "whole", "whole": {"outer": {"momentum": 0.9, "learning_rate": 0.7, "nesterov": True}}}
    if flavour == "adapters":
        del schedule["blocks"]
        more = {"method": "adapters", "adapters": {"combine": "exact", "rank": 3, "matrices": ["attention"]}}
    if flavour == "corrected":
        schedule["cycles"], more = 2, {"corrections": {"rank": 2}, "delta": {"codec": "float32"}}
    if flavour in ("feedback", "full"):
        more = {"delta": {"codec": "int8", "error_feedback": True}}
    if flavour == "full" and rows is not None:
        more |= {"evaluate": {"held_out": rows[0].name, "digest": rows[1], "every": "cycle"}}
    if flavour == "short":
        schedule |= {"cycles": 2, "blocks": ["layers.0", "layers.1"]}
    return {
        "name": name, "model": "tiny", "task": {"kind": "text-classification", "labels": 2, "max_length": 16}, "schedule": schedule,
        "train": {"steps": 20, "batch_size": 8, "learning_rate": 1e-3, "precision": "float32"},
        "seed": seed, "lease_s": 4 if flavour == "wave" else LEASE_S, **more,
    }  # fmt: skip
