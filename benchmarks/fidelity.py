"""How faithful emulators are: the gradient of each layer of MiniLM in the emulator, against that in the real model, on SST-2.

    python -m benchmarks.fidelity --data DIRECTORY [--json FILE]

DIRECTORY holds glue_sst2_train.jsonl.gz and glue_sst2_dev.jsonl.gz (columns sentence, label). A fresh head has no opinion, and the
gradients that it sends down mean nothing; so the head alone is trained first, on 1,500 training rows, with the rate of a first visit
(5e-3), for 1 and for 4 passes. The longer it is trained, the closer the model is to where its gradient vanishes, and the more of
what is left of it is error.
Emulators are made by the coordinator's own policies, encoder and measurement, in float32, on the first rows of the development
set, in batches of 16 as a run trains on. A plan is measured once for each layer visited. Shown are the mean over batches and the six
layers, the worst layer, the worst batch of any layer, and beside them what the measurement would be on the gradient summed over all rows.
Figures are of the head of one pass; those of four passes begin with `passes_4_`.
"""

import gzip
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.banking77 import minilm
from benchmarks.report import arguments, finish
from fedcybgd.coordinator.domain.compression import BlockFacts, Plan, plan
from fedcybgd.coordinator.domain.jobs.measurements import Calibration, HeldOutRef, InfluencePayload
from fedcybgd.coordinator.domain.jobs.payloads import ImportPayload, PreparePayload, PrepareResult
from fedcybgd.coordinator.domain.run_file import CompressionSection
from fedcybgd.coordinator.engine.calibration import CalibrationRows
from fedcybgd.coordinator.engine.encode import ShardEncoder
from fedcybgd.coordinator.engine.fidelity import BatchGradient, compare, cosine, gradients
from fedcybgd.coordinator.engine.import_model import import_model
from fedcybgd.coordinator.engine.influence import influence
from fedcybgd.coordinator.engine.prepare import prepare
from fedcybgd.coordinator.engine.shards import Piece, from_tensor, write_blob, write_shard
from fedcybgd.coordinator.engine.streaming import Streamed
from fedcybgd.coordinator.storage import BlobStore, open_store
from fedcybgd.shared.contract.manifests import ShardRef

MAX_LENGTH = 64
HEAD_ROWS, HEAD_RATE = 1500, 5e-3
BATCH = 16
AT_LEAST = {"int8_cosine": 0.99, "int4_cosine": 0.9}


@dataclass
class Subject:
    """The model that is measured, and on what."""

    store: BlobStore
    prepared: PrepareResult
    blocks: list[ShardRef]
    calibration: Calibration
    rows: CalibrationRows


def subject(store: BlobStore, data: Path, rows: int, head_passes: int) -> Subject:
    """MiniLM with a trained head, in `store`."""
    imported = import_model(store, ImportPayload(source=str(minilm())))
    held_out = _rows(store, data / "glue_sst2_dev.jsonl.gz", None)
    prepared = prepare(
        store,
        PreparePayload(
            config=imported.config, files=imported.files, blocks=imported.blocks, task="text-classification", num_labels=2, label_names=None,
            max_length=MAX_LENGTH, patterns=["layers"], always=["head"], layers_per_block=1, seed=0, held_out=held_out,
        ),
    )  # fmt: skip
    blocks = [ShardRef(block=b.name, version=0, codec="exact", digest=b.digest, size=b.size) for b in prepared.blocks]
    training = _calibration(prepared, blocks, _rows(store, data / "glue_sst2_train.jsonl.gz", HEAD_ROWS), HEAD_ROWS)
    blocks = _train_head(store, training, blocks, head_passes)
    calibration = _calibration(prepared, blocks, held_out, rows)
    return Subject(store, prepared, blocks, calibration, CalibrationRows(store, calibration))


def _rows(store: BlobStore, path: Path, number: int | None) -> HeldOutRef:
    with gzip.open(path, "rt") as file:
        lines = file.readlines()[:number]
    digest, _ = write_blob(store, "".join(lines).encode())
    return HeldOutRef(digest=digest, name="rows.jsonl", columns={"text": "sentence"})


def _calibration(prepared: PrepareResult, blocks: list[ShardRef], held_out: HeldOutRef, rows: int) -> Calibration:
    return Calibration(
        task="text-classification", num_labels=2, label_names=None, max_length=MAX_LENGTH, files=prepared.files, blocks=blocks, held_out=held_out,
        rows=rows,
    )  # fmt: skip


def _train_head(store: BlobStore, training: Calibration, blocks: list[ShardRef], passes: int) -> list[ShardRef]:
    """The blocks with the head trained. What enters it is computed once: nothing below it changes."""
    rows = CalibrationRows(store, training)
    streamed = Streamed(store, rows.config, "text-classification")
    for ref in blocks:
        if ref.block != "head":
            streamed.put(ref)
    head = next(ref for ref in blocks if ref.block == "head")
    parameters = streamed.open(head)
    classifier = streamed.model.get_submodule("classifier")
    entering: list[Tensor] = []
    hook = classifier.register_forward_pre_hook(lambda _, args: entering.append(args[0].detach()))
    labels = []
    with torch.no_grad():
        for batch in rows.batches():
            streamed.model(**batch.inputs)
            labels.append(batch.labels)
    hook.remove()
    x, y = torch.cat(entering), torch.cat(labels)
    optimizer = torch.optim.AdamW(parameters.values(), lr=HEAD_RATE)
    generator = torch.Generator().manual_seed(0)
    for _ in range(passes):
        for chosen in torch.randperm(len(x), generator=generator).split(16):
            loss = functional.cross_entropy(classifier(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        print(f"head: {passes} passes, right on {(classifier(x).argmax(-1) == y).float().mean():.1%} of its {len(y)} training rows")
    pieces: list[Piece] = [from_tensor(n, p.shape, p.dtype, lambda p=p: p) for n, p in parameters.items()]  # type: ignore[misc]
    digest, size = write_shard(store, pieces)
    return [ref.model_copy(update={"digest": digest, "size": size}) if ref is head else ref for ref in blocks]


def plans(facts: Callable[[str], list[BlockFacts]], order: list[str]) -> dict[str, Callable[[str], Plan]]:
    """name → from the visited block to the plan of its visit. `order`: layers, least influence first."""

    def policy(name: str, facts: Callable[[str], list[BlockFacts]] = facts) -> Callable[[str], Plan]:
        def of(block: str) -> Plan:
            chosen = plan(CompressionSection.model_validate({"policy": name}), facts(block), {block, "head"})
            assert isinstance(chosen, dict)
            return chosen

        return of

    def dropping(number: int) -> Callable[[str], Plan]:
        return lambda block: dict.fromkeys([name for name in order if name != block][:number], "dropped")

    def pruning(codec: str) -> Callable[[str], Plan]:
        return lambda block: {name: codec for name in order if name != block}

    def nothing_updated(block: str) -> list[BlockFacts]:
        return [BlockFacts(f.name, f.kind, f.num_parameters, 0, f.influence) for f in facts(block)]

    return {
        "int8": policy("int8"),
        "int4": policy("int4"),
        "hybrid, first cycle": policy("hybrid"),
        "hybrid, nothing updated": policy("hybrid", nothing_updated),
        "one of six dropped": dropping(1),
        "two of six dropped": dropping(2),
        "three of six dropped": dropping(3),
        "pruned:25": pruning("pruned:25"),
        "pruned:50": pruning("pruned:50"),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory with the SST-2 files")
    parser.add_argument("--rows", type=int, default=64, help="rows of the development set that are measured on")
    parser.add_argument(
        "--head-passes", type=int, nargs="+", default=[1, 4], help="passes over the training rows for which the head is trained"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    for passes in options.head_passes:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            found = measure(subject(open_store(Path(folder)), options.data, options.rows, passes))
        prefix = "" if passes == options.head_passes[0] else f"passes_{passes}_"
        figures |= {prefix + name: value for name, value in found.items()}
        for name, target in AT_LEAST.items():
            print(f"{prefix}{name}: {found[name]:.4f}, target at least {target:g}{'' if found[name] >= target else ', MISSED'}")
        print()
    finish(figures, {}, options.json)


def measure(given: Subject) -> dict[str, float]:
    """Print the table; returns the figures: for each plan the mean cosine over batches and layers, the worst layer's, the worst batch's, that of
    gradients summed over all rows, and the mean difference of losses."""
    found = influence(given.store, InfluencePayload.model_validate(given.calibration.model_dump())).influence
    print("influence: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    layers = list(found)

    def facts(visited: str) -> list[BlockFacts]:
        # In the first cycle, in ascending order: what comes before the visited layer has been updated.
        updated = layers[: layers.index(visited)]
        return [
            BlockFacts(b.name, b.kind, b.num_parameters, 1 if b.name in updated else 0, found.get(b.name)) for b in given.prepared.blocks
        ]

    config = next(f for f in given.calibration.files if f.name == "config.json")
    encoder, encoded = ShardEncoder(given.store, config, "text-classification"), {}

    def shard(ref: ShardRef, codec: str) -> ShardRef:
        if codec == "exact":
            return ref
        if (ref.block, codec) not in encoded:
            made = encoder.encode(ref.digest, codec)
            encoded[ref.block, codec] = ref.model_copy(update={"codec": codec, "digest": made.digest, "size": made.size})
        return encoded[ref.block, codec]

    real = {block: list(gradients(given.store, given.rows, "text-classification", block, given.blocks, BATCH)) for block in layers}
    exact = [compare(real[block], real[block]).loss_real for block in layers]
    print(f"real model: loss {exact[0]:.4f} on {len(given.rows)} rows\n")
    titles = ("mean cosine", "worst layer", "worst batch", "of the sum", "loss - real", "MB")
    print(f"{'plan':26} {' '.join(f'{title:>11}' for title in titles)}   by layer")
    figures: dict[str, float] = {}
    began, measured = time.monotonic(), 0
    for name, choose in plans(facts, sorted(layers, key=lambda block: found[block])).items():
        cosines, batches, sums, losses, sizes = [], [], [], [], []
        for block in layers:
            chosen = {b.block: "exact" for b in given.blocks} | choose(block)
            shards = [shard(ref, chosen[ref.block]) for ref in given.blocks if chosen[ref.block] != "dropped"]
            dropped = [b for b, codec in chosen.items() if codec == "dropped"]
            bent = list(gradients(given.store, given.rows, "text-classification", block, shards, BATCH, dropped))
            compared = compare(real[block], bent)
            cosines.append(compared.cosine)
            batches.append(compared.worst)
            sums.append(cosine(_summed(real[block]), _summed(bent)) or 0.0)
            losses.append(compared.loss_emulator - compared.loss_real)
            sizes.append(sum(ref.size for ref in shards))
            measured += 1
        values = (statistics.mean(cosines), min(cosines), min(batches), statistics.mean(sums), statistics.mean(losses))
        key = name.replace(",", "").replace(" ", "_").replace(":", "_")
        figures |= {
            f"{key}_{what}": value for what, value in zip(("cosine", "worst", "worst_batch", "summed", "loss"), values, strict=True)
        }
        numbers = " ".join(f"{value:11.4f}" for value in values)
        print(f"{name:26} {numbers} {statistics.mean(sizes) / 1e6:11.1f}   {' '.join(f'{c:.2f}' for c in cosines)}", flush=True)
    print(f"\n{(time.monotonic() - began) / measured:.2f} s a measurement (one block, one plan)")
    return figures


def _summed(batches: list[BatchGradient]) -> dict[str, Tensor]:
    return {name: torch.stack([batch.gradient[name] for batch in batches]).sum(0) for name in batches[0].gradient}


if __name__ == "__main__":
    main()
