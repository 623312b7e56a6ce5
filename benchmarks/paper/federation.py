"""Small federations in this process: a model, the rows of its agents, held-out rows, and visitors that stay warm from arm to arm."""

import gc
import gzip
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import device, reference
from benchmarks.banking77 import minilm, tiny
from benchmarks.paper.landscape import Judge
from benchmarks.reference import Reference
from examples.demo.tasks import EXAMPLES, shakespeare
from fedcybgd.agent.training.visitor import Visitor

AGENTS = 6
ALL = 100_000
PLAIN: dict[str, Any] = {"compression": {"policy": "none"}, "delta": {"codec": "float32"}}
INT8: dict[str, Any] = {"compression": {"policy": "int8"}, "delta": {"codec": "int8"}}


@dataclass
class Federation:
    """What the arms of one seed have in common."""

    model: Path
    partitions: list[Path]
    held_out: Path
    visitors: list[Visitor]
    judge: Judge | None = None

    def loss(self, run: Reference) -> float:
        """Of the run's model on the held-out rows, in nats a prediction."""
        if self.judge is None:
            self.judge = Judge(run, self.held_out, ALL)
        return self.judge.loss_of(run)

    def begin(self, folder: Path, spec: Mapping[str, Any]) -> Reference:
        run = reference.begin(folder, self.model, spec)
        if run.spec.compression["policy"] == "hybrid":
            reference.measure_influence(run, self.held_out)
        return run

    def go_on(
        self,
        run: Reference,
        folder: Path,
        rounds: int | None = None,
        partitions: Sequence[Path] | None = None,
        after_round: Callable[[int], None] = lambda _: None,
    ) -> None:
        """The next rounds of a run, all that are left unless `rounds` says how many; agent i trains on `partitions[i]`, or its own rows."""
        reference.run(run, partitions or self.partitions, folder / "scratch", rounds, self.visitors, after_round)


@dataclass
class Place:
    """Where a question is worked on: federations are made once for a seed, `scratch` is empty whenever it is asked for."""

    folder: Path
    data: Path | None
    tiny: bool
    kept: dict[Any, Any] = field(default_factory=dict)

    def scratch(self) -> Path:
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)
        return self.folder / "scratch"

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made at the first call."""
        if key not in self.kept:
            self.kept[key] = make()
            gc.freeze()  # a visit ends with a look for garbage; it need not look through what stays for good
        return self.kept[key]

    def plays(self, seed: int, pooled: bool = False) -> Federation:
        """stories260K, 1,200 speeches of whole plays of Shakespeare with each of six agents, 300 held out; `pooled`: all of them with one."""
        return self.once(("plays", seed, pooled), lambda: self._plays(seed, pooled))  # type: ignore[no-any-return]

    def _plays(self, seed: int, pooled: bool) -> Federation:
        folder = self.folder / f"plays-{seed}-{pooled}"
        _, paths = shakespeare(folder)
        held_out = folder / "held-out.jsonl"
        _cut(held_out, self.size(300, 10))
        for path in paths:
            _cut(path, self.size(1200, 20))
        random.Random(seed).shuffle(paths)
        if pooled:
            paths[0].write_text("".join(path.read_text() for path in paths))
            paths = paths[:1]
        return Federation(EXAMPLES / "models" / "stories260K", paths, held_out, [device.visitor() for _ in paths])

    def reviews(self, seed: int) -> Federation:
        """MiniLM, and 1,200 rows of SST-2 dealt out to six agents; 872 others are held out."""
        return self.once(("reviews", seed), lambda: self._reviews(seed))  # type: ignore[no-any-return]

    def _reviews(self, seed: int) -> Federation:
        if self.data is None:
            raise SystemExit("this question needs --data DIR, a directory with glue_sst2_train.jsonl.gz and glue_sst2_dev.jsonl.gz")
        folder = self.folder / f"reviews-{seed}"
        folder.mkdir()
        rows, held = self.size(1200, 48), self.size(872, 24)
        train, tested = _read(self.data / "glue_sst2_train.jsonl.gz"), _read(self.data / "glue_sst2_dev.jsonl.gz")
        random.Random(seed).shuffle(train)
        paths = [folder / f"agent-{i}.jsonl" for i in range(AGENTS)]
        for i, path in enumerate(paths):
            _write(path, train[:rows][i::AGENTS])
        _write(folder / "held-out.jsonl", tested[:held])
        model = tiny(folder / "model") if self.tiny else minilm()
        # One model in memory, not six; an agent's rows are read again when they are its turn.
        return Federation(model, paths, folder / "held-out.jsonl", [device.visitor()] * AGENTS)


def plays_spec(seed: int, steps: int, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """The run file of a strict cycle over all blocks of stories260K, nothing compressed, with `sections` laid over it."""
    base: dict[str, Any] = {
        "name": "plays", "model": "stories260K", "seed": seed, "task": {"kind": "causal-lm", "max_length": 64},
        "schedule": {"cycles": 1, "blocks": ["all"], "always": ["norm"]},
        "train": {"steps": steps, "batch_size": 8, "learning_rate": 3e-3, "warmup_steps": 2}, **PLAIN,
    }  # fmt: skip
    return laid_over(base, sections)


def reviews_spec(seed: int, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """The run file of a strict cycle over the layers of MiniLM, pooler and head along, a pass over an agent's rows a visit, int8."""
    base: dict[str, Any] = {
        "name": "reviews", "model": "minilm", "seed": seed, "task": {"kind": "text-classification", "labels": 2, "max_length": 64},
        "schedule": {"cycles": 3, "blocks": ["layers"], "always": ["pooler", "head"]},
        "train": {"epochs": 1, "batch_size": 16, "learning_rate": 4e-4, "learning_rate_decay": 0.75, "always_learning_rate": 2e-3,
                  "always_learning_rate_decay": 0.6, "weight_decay": 0.01}, **INT8,
    }  # fmt: skip
    return laid_over(base, sections)


def laid_over(base: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        **base,
        **{name: {**base.get(name, {}), **values} if isinstance(values, Mapping) else values for name, values in sections.items()},
    }


def _read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [{"text": row["sentence"], "label": int(row["label"])} for row in map(json.loads, file)]


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _cut(path: Path, rows: int) -> None:
    """Leave some rows of a file, the same ones always, in the order of its text."""
    lines = path.read_text().splitlines(keepends=True)
    if rows < len(lines):
        kept = sorted(random.Random(0).sample(range(len(lines)), rows))
        path.write_text("".join(lines[i] for i in kept))
