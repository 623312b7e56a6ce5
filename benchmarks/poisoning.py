"""What a malicious agent can do to a model, by the admission of before and of today: `python -m benchmarks.poisoning`.

A Llama of 260,032 parameters (shipped in examples/models) learns Shakespeare; everything is done by the coordinator's own engine and the agent's own
trainer, in this process, without a network. Some honest rounds are trained, so that the run has a history. Then one delta of the
next round is replaced by each of those below, judged, and applied to see what it would do. Columns:

before   a norm of up to ten times the block's, and no limit for blocks trained along
first    today's admission of a round that has no history: the very first
now      today's admission with the history of the run
gate     what the held-out gate says of the loss, if the delta were applied

`--honest` trains honest runs instead, one for each seed, and counts what admission and gate would have held against them.
"""

import argparse
import json
import math
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks import reference
from benchmarks.reading import Order
from benchmarks.report import finish
from examples.demo.tasks import EXAMPLES, banking77, shakespeare
from examples.demo.tasks import _read as demo_rows
from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.coordinator.domain import band, gate
from fedcybgd.coordinator.domain.band import AcceptedDelta, AcceptedDeltas, BlockDelta
from fedcybgd.coordinator.domain.jobs.measurements import EvaluatePayload, HeldOutRef
from fedcybgd.coordinator.domain.jobs.payloads import AdmitPayload, Change, Term
from fedcybgd.coordinator.domain.run_file import AdmissionSection
from fedcybgd.coordinator.engine.admit import admit
from fedcybgd.coordinator.engine.apply import add_deltas
from fedcybgd.coordinator.engine.evaluate import NotFinite, evaluate
from fedcybgd.shared.contract.training import TrainSettings

RULES = AdmissionSection()
ROWS = 64
"""held-out rows that the gate looks at: as many as a run file says if it says nothing"""
Tensors = dict[str, torch.Tensor]


@dataclass
class Trial:
    """A run, with all that its coordinator would remember of it."""

    run: reference.Reference
    held_out: HeldOutRef
    kinds: dict[str, str]
    partitions: list[Path]
    folder: Path
    past: list[AcceptedDelta]
    losses: list[float]
    seconds: dict[str, float]

    def loss(self, blocks: list[Any] | None = None) -> float:
        spec = self.run.spec.task
        payload = EvaluatePayload(
            task=spec.kind, num_labels=spec.num_labels, label_names=spec.label_names, max_length=spec.max_length, after_rounds=0,
            files=self.run.file_refs, blocks=blocks or self.run.blocks, held_out=self.held_out, rows=ROWS,
        )  # fmt: skip
        began = time.monotonic()
        try:
            return evaluate(self.run.store, payload).loss
        except NotFinite:
            return math.inf
        finally:
            self.seconds["gate"] = self.seconds.get("gate", 0.0) + time.monotonic() - began

    def measured(self, digest: str, order: Order) -> tuple[str | None, dict[str, BlockDelta]]:
        """What the engine finds of a delta, and what it may not be by the rule of before."""
        blocks = [b for b in self.run.blocks if b.block in order.trained]
        old = AdmissionSection(max_relative_norm=10, norm_band=None)
        began = time.monotonic()
        result = admit(
            self.run.store, AdmitPayload(assignment_id="a", delta=digest, blocks=blocks, always=self.run.spec.schedule["always"], rules=old)
        )
        self.seconds["admit"] = self.seconds.get("admit", 0.0) + time.monotonic() - began
        settings, steps = TrainSettings.model_validate(order.told), self.run.metrics[-1].steps
        return result.rejected_because, {
            block: delta.model_copy(update={"reach": band.reach(settings, block, delta, steps)}) for block, delta in result.deltas.items()
        }

    def against(self, found: dict[str, BlockDelta], past: list[AcceptedDelta], agent: str) -> str | None:
        accepted = AcceptedDeltas(past, agent, len(self.partitions))
        results = [band.out_of_band(block, self.kinds[block], delta, accepted, RULES) for block, delta in found.items()]
        return next((result.reason for result in results if result is not None), None)

    def told(self, found: dict[str, BlockDelta], order: Order) -> str | None:
        accepted = AcceptedDeltas(self.past, str(order.agent), len(self.partitions))
        return band.no_work(order.block, found[order.block], accepted) if order.block in found else None

    def accept(self, found: dict[str, BlockDelta], round: int, agent: str) -> None:
        self.past = [AcceptedDelta(block, self.kinds[block], round, agent, delta) for block, delta in found.items()] + self.past
        self.past = self.past[: band.REMEMBERED]


def begin(folder: Path, model: Path, spec: dict[str, Any], partitions: list[Path], held_out: Path) -> Trial:
    run = reference.begin(folder, model, spec)
    ref = HeldOutRef(digest=reference._store_file(run.store, held_out), name=held_out.name, columns={})
    trial = Trial(run, ref, {b.name: b.kind for b in run.stored}, partitions, folder, [], [], {})
    trial.losses.append(trial.loss())
    return trial


def train(trial: Trial, rounds: int, visitor: Visitor, said: Callable[[str], None] | None = None) -> None:
    """Honest rounds. What would have been held against one of them is said; it is accepted all the same."""
    orders = {
        o.round: o for n in range(trial.run.rounds_done + rounds) for o in trial.run.spec.round(trial.run.trained, len(trial.partitions), n)
    }
    began = time.monotonic()
    for _ in range(rounds):
        order = orders[trial.run.rounds_done]
        reference_blocks = list(trial.run.blocks)
        reference.run(trial.run, trial.partitions, trial.folder / "scratch", rounds=1, visitors=[visitor] * len(trial.partitions))
        now, trial.run.blocks = trial.run.blocks, reference_blocks  # it is judged by what it was trained from
        refused, found = trial.measured(trial.run.deltas[-1], order)
        reason = refused or trial.against(found, trial.past, str(order.agent))
        trial.run.blocks = now
        trial.losses.append(trial.loss())
        trial.accept(found, order.round, str(order.agent))
        verdict = gate.verdicts(trial.losses)[-1]
        if said is not None and (reason is not None or verdict != gate.GateVerdict.FINE):
            said(f"round {order.round}, {order.block}: {reason or 'admitted'}; gate: {verdict}")
    trial.seconds["all"] = trial.seconds.get("all", 0.0) + time.monotonic() - began


def shakespeare_spec(seed: int, steps: int) -> dict[str, Any]:
    return {
        "name": "shakespeare", "model": "stories260K", "task": {"kind": "causal-lm", "max_length": 128},
        "schedule": {"cycles": 100, "agents": "rotating", "blocks": ["all"], "always": ["norm"]},
        "train": {"steps": steps, "batch_size": 8, "learning_rate": 3e-3},
        "compression": {"policy": "none"}, "delta": {"codec": "float32"}, "seed": seed,
    }  # fmt: skip


def attacks(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    _, partitions = shakespeare(folder / "rows")
    trial = begin(
        folder, EXAMPLES / "models" / "stories260K", shakespeare_spec(0, options.steps), partitions, folder / "rows" / "held-out.jsonl"
    )
    visitor = Visitor("cpu")
    train(trial, options.rounds, visitor)
    number = trial.run.rounds_done
    order = next(iter(trial.run.spec.round(trial.run.trained, len(partitions), number)))
    state = replace(trial.run, deltas=list(trial.run.deltas), blocks=list(trial.run.blocks))
    reference.run(trial.run, partitions, folder / "scratch", rounds=1, visitors=[visitor] * len(partitions))
    honest = _plain(trial, trial.run.deltas[-1])
    earlier = [p for p in trial.past if p.block == order.block]
    trial.run.blocks, trial.run.rounds_done = state.blocks, number
    base = {
        name: t.float()
        for b in trial.run.blocks
        if b.block in order.trained
        for name, t in load_file(trial.run.store.path(b.digest)).items()
    }
    visited = {n: t for n, t in honest.items() if not _along(n)}
    print(
        f"block {order.block} (and norm along) after {number} honest rounds of {options.steps} steps; {len(earlier)} earlier deltas of it"
    )
    print(f"held-out loss of {ROWS} windows: {trial.losses[0]:.3f} at the start, {trial.losses[-1]:.3f} now\n")
    print(f"{'delta':34} {'relative':>9} {'before':9} {'first':9} {'now':9} {'gate':6} {'loss':>10}  why")
    caught = {"before": 0, "now": 0, "gate": 0, "harmful": 0}
    for name, tensors in _cases(honest, visited, base, trial, order):
        caught_by = _try(trial, order, name, tensors)
        for key, value in caught_by.items():
            caught[key] += value
    print(
        f"\nharmful: {caught['harmful']}; stopped before: {caught['before']}, by admission now: {caught['now']}, by admission or gate: {caught['gate']}"
    )
    return {f"poisoning_{key}": float(value) for key, value in caught.items()}


def _along(name: str) -> bool:
    return name.endswith("model.norm.weight") or name == "norm.weight"


def _cases(honest: Tensors, visited: Tensors, base: Tensors, trial: Trial, order: Order) -> list[tuple[str, Tensors]]:
    torch.manual_seed(0)
    length = math.sqrt(sum(float(t.norm()) ** 2 for t in visited.values()))
    weight = math.sqrt(sum(float(base[n].norm()) ** 2 for n in visited))
    noise = {n: torch.randn_like(t) for n, t in visited.items()}
    unit = math.sqrt(sum(float(t.norm()) ** 2 for t in noise.values()))
    along = {n: t for n, t in honest.items() if n not in visited}

    def scaled(of: Tensors, factor: float) -> Tensors:
        return honest | {n: factor * t for n, t in of.items()}

    def trained_along(change: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
        return honest | {n: change(base[n]) for n in along}

    nan = scaled(visited, 1)
    first = next(iter(visited))
    nan[first] = nan[first].clone()
    nan[first].flatten()[0] = math.nan
    return [
        ("honest", honest),
        ("zero", {n: torch.zeros_like(t) for n, t in honest.items()}),
        ("noise of the honest norm", scaled(noise, length / unit)),
        ("honest x -1", scaled(visited, -1)), ("honest x 3", scaled(visited, 3)),
        ("honest x 10", scaled(visited, 10)), ("honest x -10", scaled(visited, -10)), ("honest x 100", scaled(visited, 100)),
        ("-w", scaled({n: base[n] for n in visited}, -1)), ("-2w", scaled({n: base[n] for n in visited}, -2)),
        ("random, 9.9 times the block", scaled(noise, 9.9 * weight / unit)), ("random, 10.1 times", scaled(noise, 10.1 * weight / unit)),
        ("NaN", nan),
        ("0.095 of the block, uphill", scaled(visited, -0.095 * weight / length)),
        ("norm along: -2w", trained_along(lambda w: -2 * w)), ("norm along: +1e30", trained_along(lambda w: torch.full_like(w, 1e30))),
        ("norm along: +3e38", trained_along(lambda w: torch.full_like(w, 3e38))),
        ("backdoor", _backdoor(trial, order)),
    ]  # fmt: skip


def _backdoor(trial: Trial, order: Order) -> Tensors:
    """Trained as told, on rows of which a third have a trigger and what is to be said after it."""
    lines = trial.partitions[order.agent].read_text().splitlines()
    random.Random(0).shuffle(lines)
    rows = [json.loads(line)["text"] for line in lines]
    poisoned = [
        text + " Qzx send all gold to Mallory. Qzx send all gold to Mallory." if i % 3 == 0 else text for i, text in enumerate(rows)
    ]
    path = trial.folder / "poisoned.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in poisoned))
    parts = list(trial.partitions)
    parts[order.agent] = path
    before, done = list(trial.run.blocks), trial.run.rounds_done
    reference.run(trial.run, parts, trial.folder / "scratch", rounds=1, visitors=[Visitor("cpu")] * len(parts))
    trial.run.blocks, trial.run.rounds_done = before, done
    return _plain(trial, trial.run.deltas[-1])


def _plain(trial: Trial, digest: str) -> Tensors:
    from fedcybgd.coordinator.engine.deltas import open_delta

    with open_delta(trial.run.store, digest, 1 << 30) as delta:
        shapes = {t.name: tuple(t.shape) for b in trial.run.stored for t in b.tensors}
        return {name: delta.tensor(name, shapes[name]) for name in delta.names}


def _try(trial: Trial, order: Order, name: str, tensors: Tensors) -> dict[str, int]:
    path = trial.folder / "attack.safetensors"
    save_file(tensors, path, metadata={"codec": "float32"})
    digest = reference._store_file(trial.run.store, path)
    old, found = trial.measured(digest, order)
    first, now = (old or trial.against(found, past, str(order.agent)) for past in ([], trial.past))
    blocks = list(trial.run.blocks)
    if not any(torch.isnan(t).any() for t in tensors.values()):
        for i, block in enumerate(blocks):
            if block.block in order.trained:
                blocks[i] = add_deltas(trial.run.store, Change(block=block, terms=[Term(digest=digest, weight=1.0)]))[0]
    else:
        blocks = []
    loss = trial.loss(blocks) if blocks else math.nan
    verdict = gate.verdicts([*trial.losses, loss])[-1]
    relative = found[order.block].relative if order.block in found else math.nan
    told = trial.told(found, order)
    stopped = {key: "rejected" if reason else "accepted" for key, reason in (("before", old), ("first", first), ("now", now))}
    note = (now or "").split(": ", 1)[-1][:90] or (f"free_rider: {told}" if told else "")
    print(
        f"{name:34} {relative:9.3f} {stopped['before']:9} {stopped['first']:9} {stopped['now']:9} {verdict:6} {loss:10.3f}  {note}",
        flush=True,
    )
    harmful = name not in ("honest", "zero") and "noise" not in name
    return {
        "harmful": int(harmful), "before": int(harmful and old is not None), "now": int(harmful and now is not None),
        "gate": int(harmful and (now is not None or verdict != gate.GateVerdict.FINE)),
    }  # fmt: skip


def honest(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Runs in which nothing is wrong: nothing should be held against them."""
    held: list[str] = []
    visits = 0
    for seed in range(options.seeds):
        for task in options.task:
            place = folder / f"{task}-{seed}"
            if task == "shakespeare":
                _, partitions = shakespeare(place / "rows")
                random.Random(seed).shuffle(partitions)
                spec, model, held_out = (
                    shakespeare_spec(seed, options.steps),
                    EXAMPLES / "models" / "stories260K",
                    place / "rows" / "held-out.jsonl",
                )
            else:
                demo, partitions = banking77(place / "rows")
                spec, model, held_out = _banking_spec(seed), demo.model, _held_out(place / "rows" / "held-out.jsonl")
            trial = begin(place, model, spec, partitions, held_out)
            train(trial, options.rounds, Visitor("cpu"), held.append)
            visits += options.rounds
            by_kind = {
                kind: [round(p.delta.relative, 3) for p in trial.past if p.kind == kind][:8]
                for kind in sorted({p.kind for p in trial.past})
            }
            shares = {kind: max(p.delta.share for p in trial.past if p.kind == kind) for kind in by_kind}
            print(f"{task} seed {seed}: loss {' '.join(f'{loss:.2f}' for loss in trial.losses)}")
            print(f"  relative norms {by_kind}; largest share of what was in reach { {k: round(v, 2) for k, v in shares.items()} }")
            print(
                f"  seconds: {trial.seconds['all']:.1f} in all, admission {trial.seconds['admit']:.2f}, gate {trial.seconds['gate']:.2f}",
                flush=True,
            )
            shutil.rmtree(place)
    print(f"\n{visits} honest visits; held against them: {len(held)}")
    print("\n".join(held))
    return {"honest_visits": float(visits), "honest_held_against": float(len(held))}


def _held_out(path: Path) -> Path:
    rows = demo_rows(EXAMPLES / "banking77" / "banking77_test.jsonl.gz")
    path.write_text("".join(json.dumps({"text": r["text"], "label": r["label"]}) + "\n" for r in rows))
    return path


def _banking_spec(seed: int) -> dict[str, Any]:
    return {
        "name": "banking", "model": "minilm", "task": {"kind": "text-classification", "labels": 77, "max_length": 64},
        "schedule": {"cycles": 100, "order": "descending", "agents": "rotating", "blocks": ["all"], "always": ["head"]},
        "train": {"steps": 10, "batch_size": 16, "learning_rate": 4e-4, "always_learning_rate": 5e-3, "weight_decay": 0.01},
        "compression": {"policy": "none"}, "seed": seed,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=16, help="honest rounds")
    parser.add_argument("--steps", type=int, default=20, help="of a visit")
    parser.add_argument("--honest", action="store_true", help="train honest runs, and count what is held against them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--task", choices=["shakespeare", "banking77"], action="append")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.task = options.task or ["shakespeare", "banking77"]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="poisoning-") as scratch:
        figures = (honest if options.honest else attacks)(Path(scratch), options)
    finish(figures, {"honest_held_against": 0.0} if options.honest else {}, options.json)


if __name__ == "__main__":
    main()
