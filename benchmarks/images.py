"""Beyond text: a vision transformer on images of six agents, trained in three ways: `python -m benchmarks.images --data FOLDER`.

MNIST (`mnist_6k.npz`) and CIFAR-10 (`cifar10_2500.npz`), 2,000 rows and 1,000 or 500 held out, arrays x_train, y_train, x_test, y_test. The
model has the shape of a ViT (five layers of width 64, 16 patches an image, 0.18 M parameters) and random weights: what it can, the run taught it.
All arms of a data set and a seed are run one after another in one process with one thread; every row is seen `--passes` times in each.

waves     embeddings and layers, six blocks at once (`wave: 6`, `damping: 0.5`), norm and head along; frozen blocks and deltas in int8
cycle     the same one block after another; only with `--arm cycle`
whole     all agents train the whole model, and the mean is taken (FedAvg); deltas in int8
head      the head alone, one agent after another: the anchor; and the share of the commonest label (`majority`)

Every arm has a learning-rate search of its own on a seed that is not reported: three values, and further ones while the best is at an edge, at most
three. The first two fifths of the held-out rows choose; the figures are of the others. `state` is what an agent holds for training: 16 bytes a trained
parameter (value, gradient, two moments), and one a frozen parameter in int8; `moved` is all that crossed the wires.
"""

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.report import arguments

AGENTS, LABELS, LAYERS = 6, 10, 5
SETS = {"mnist": ("mnist_6k.npz", 28, 7, 1), "cifar10": ("cifar10_2500.npz", 32, 8, 3)}
"""file, pixels of an image's side and of a patch's, channels"""
ARMS = ("waves", "whole", "head")
RATES = (1e-3, 2e-3, 4e-3)
FURTHER, FACTOR, SEARCH_SEED, CHOOSE = 3, 2.0, 1000, 0.4
MEASURED = ("accuracy", "macro_f1", "loss", "state_mb", "moved_mb", "seconds")


def spec_of(arm: str, seed: int, passes: int, rate: float) -> dict[str, Any]:
    """The run file of an arm."""
    along = {"blocks": ["embeddings", "layers"], "always": ["norm", "head"], "cycles": passes}
    schedules: dict[str, dict[str, Any]] = {
        "cycle": along, "waves": along | {"wave": AGENTS, "damping": 0.5}, "whole": {"cycles": passes},
        "head": {"blocks": ["head"], "cycles": passes * AGENTS},
    }  # fmt: skip
    how: dict[str, Any] = {"method": "whole"} if arm == "whole" else {"compression": {"policy": "int8", "calibration_rows": 0}}
    return {
        "name": "images", "model": "vit", "task": {"kind": "image-classification", "labels": LABELS}, "schedule": schedules[arm],
        "train": {"epochs": 1, "batch_size": 32, "learning_rate": rate, "warmup_steps": 2}, "delta": {"codec": "int8"}, "seed": seed, **how,
    }  # fmt: skip


def model(folder: Path, name: str, seed: int) -> Path:
    """A ViT of random weights with its image processor."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    _, side, patch, channels = SETS[name]
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 128}
    config = ViTConfig(image_size=side, patch_size=patch, num_channels=channels, num_labels=LABELS, **sizes)
    ViTForImageClassification(config).save_pretrained(folder)
    numbers = {"image_mean": [0.5] * channels, "image_std": [0.5] * channels}
    ViTImageProcessorPil(size={"height": side, "width": side}, **numbers).save_pretrained(folder)
    return folder


def write_rows(data: Path, folder: Path, name: str, seed: int, most: int | None) -> tuple[list[Path], Path, Path]:
    """A Parquet file for each agent, and of held-out rows those that choose and those of the figures."""
    import numpy

    folder.mkdir(parents=True)
    with numpy.load(data / SETS[name][0]) as file:
        arrays = {part: file[part] for part in file.files}
    order = list(range(len(arrays["x_train"])))
    random.Random(seed).shuffle(order)
    order = order[:most]
    tested = list(range(len(arrays["x_test"])))
    random.Random(0).shuffle(tested)  # the same for all seeds
    choosing = round(CHOOSE * len(tested))
    files = [(folder / f"agent-{i}.parquet", "train", order[i::AGENTS]) for i in range(AGENTS)]
    files += [(folder / "choose.parquet", "test", tested[:choosing]), (folder / "report.parquet", "test", tested[choosing:])]
    for path, part, rows in files:
        _parquet(path, [(_png(arrays[f"x_{part}"][row]), int(arrays[f"y_{part}"][row])) for row in rows])
    paths = [path for path, *_ in files]
    return paths[:AGENTS], paths[AGENTS], paths[AGENTS + 1]


def _png(pixels: Any) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _parquet(path: Path, rows: list[tuple[bytes, int]]) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"image": [image for image, _ in rows], "label": [label for _, label in rows]})
    pyarrow.parquet.write_table(table, path)


def measure(name: str, arm: str, rate: float, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """One run, in this process."""
    import torch

    torch.set_num_threads(1)
    from benchmarks import device, reference

    gc.freeze()  # a visit of so small a model would spend its time looking through what was imported

    with tempfile.TemporaryDirectory(prefix="images-") as scratch:
        folder = Path(scratch)
        partitions, choose, report = write_rows(options.data, folder / "rows", name, seed, options.rows)
        run = reference.begin(folder, model(folder / "model", name, seed), spec_of(arm, seed, options.passes, rate))
        run.tell_labels = True
        began = time.monotonic()
        reference.run(run, partitions, folder / "scratch", visitors=[device.visitor() for _ in range(AGENTS)])
        seconds = time.monotonic() - began
        sizes = {block.name: block.num_parameters for block in run.stored}
        along = 0 if arm in ("whole", "head") else sizes["norm"] + sizes["head"]
        trained = {"whole": sum(sizes.values()), "head": sizes["head"]}.get(arm) or max(sizes["embeddings"], sizes["layers.0"]) + along
        found, chosen = run.evaluate(report), run.evaluate(choose)
        return {
            "accuracy": 100 * (found.accuracy or 0.0), "macro_f1": 100 * (found.macro_f1 or 0.0), "loss": found.loss, "choose": chosen.loss,
            "majority": 100 * (found.majority or 0.0), "state_mb": (16 * trained + sum(sizes.values()) - trained) / 1e6,
            "moved_mb": run.bytes_moved() / 1e6, "seconds": seconds,
        }  # fmt: skip


def best_rate(name: str, arm: str, options: argparse.Namespace) -> float:
    """The learning rate with the least loss on the rows that choose."""
    losses = {rate: measure(name, arm, rate, SEARCH_SEED, options)["choose"] for rate in RATES}
    for _ in range(FURTHER):
        best = min(losses, key=lambda rate: losses[rate])
        if min(losses) < best < max(losses):
            break
        further = best * FACTOR if best == max(losses) else best / FACTOR
        losses[further] = measure(name, arm, further, SEARCH_SEED, options)["choose"]
    best = min(losses, key=lambda rate: losses[rate])
    tried = ", ".join(f"{rate:g}: {losses[rate]:.3f}" for rate in sorted(losses))
    print(json.dumps({"set": name, "arm": arm, "rate": best, "tried": tried}), flush=True)
    return best


def child(name: str, options: argparse.Namespace) -> None:
    """All arms of a data set, a line of JSON each."""
    rates = {arm: best_rate(name, arm, options) for arm in options.arm or ARMS}
    for seed in range(options.seeds):
        for arm, rate in rates.items():
            print(json.dumps({"set": name, "arm": arm, "seed": seed, **measure(name, arm, rate, seed, options)}), flush=True)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--set", choices=list(SETS), action="append", help="only these")
    parser.add_argument("--arm", choices=(*ARMS, "cycle"), action="append", help="only these; cycle is left out else")
    parser.add_argument("--seeds", type=int, default=3, help="of the weights, of who has which rows, and of the order of rows")
    parser.add_argument("--passes", type=int, default=8)
    parser.add_argument("--rows", type=int, default=2000, help="of the training rows, the first ones of a shuffle")
    parser.add_argument("--one", choices=list(SETS), help="the arms of one data set, in this process")
    options = parser.parse_args()
    if options.one:
        child(options.one, options)
        return
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for name in options.set or SETS:
        for line in _lines(name):
            print(line, flush=True)
            values = json.loads(line)
            if "seed" in values:
                found.setdefault((name, values["arm"]), []).append({key: values[key] for key in (*MEASURED, "majority")})
    figures = report(found)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def _lines(name: str) -> Iterator[str]:
    # A process of its own for each data set, with one thread from its start.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "benchmarks.images", *sys.argv[1:], "--one", name]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        yield from map(str.strip, process.stdout or ())
    if process.returncode:
        raise RuntimeError(f"{name} failed")


def report(found: dict[tuple[str, str], list[dict[str, float]]]) -> dict[str, float]:
    """Print a table, and return its figures by name: mean and standard deviation over the seeds."""
    figures: dict[str, float] = {}
    print(f"\n{'set':8} {'arm':6} " + " ".join(f"{name:>16}" for name in MEASURED) + "  majority")
    for (name, arm), runs in found.items():
        shown = []
        for key in MEASURED:
            values = [run[key] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            figures |= {f"{name}/{arm}/{key}": statistics.mean(values), f"{name}/{arm}/{key}_sd": spread}
            shown.append(f"{statistics.mean(values):8.2f} ± {spread:5.2f}")
        print(f"{name:8} {arm:6} " + " ".join(f"{text:>16}" for text in shown) + f"  {runs[0]['majority']:.1f}")
    return figures


if __name__ == "__main__":
    main()
