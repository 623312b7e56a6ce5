"""Answers the paper's open questions: `python -m benchmarks.paper QUESTION… [--data DIR]`.

one-client    one client and one cycle of blocks, against central training with the same steps and tokens
compression   policies and delta codecs, one changed at a time, on a small model
schedules     layers a visit, orders, and which agent trains which block, on a medium-sized model; needs `--data`
interference  what training one block does to the gain and the gradient of the next, in four architectures; needs `--data` for one
wall-clock    what compression costs in time, and the bandwidth at which it pays; needs `--data`
ratios        the ratios that the authors' own logs show, beside ours
question-answering  answers in contexts, and a LoRA that was never trained; needs `--data` with xquad_en_squad_dev_subset.jsonl.gz

All arms of a seed are run one after another, in this process, with one thread, on the same rows. `--data` is a directory with glue_sst2_train.jsonl.gz
and glue_sst2_dev.jsonl.gz (fields `sentence` and `label`); the rest comes with the project. `--tiny` tells in seconds whether it runs at all.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.paper import compression, interference, one_client, question_answering, ratios, schedules, wall_clock
from benchmarks.paper.federation import Place
from benchmarks.paper.table import Figures
from benchmarks.report import arguments


class Question(Protocol):
    """What a file of this folder is. `measure` is one run of one arm; `report` prints what all of them say, and gives it by name."""

    @property
    def ARMS(self) -> Sequence[str]: ...

    def measure(self, arm: str, seed: int, place: Place) -> Figures: ...

    def report(self, found: dict[str, list[Figures]]) -> Figures: ...


QUESTIONS: dict[str, Question] = {
    "one-client": one_client,
    "compression": compression,
    "schedules": schedules,
    "interference": interference,
    "wall-clock": wall_clock,
    "ratios": ratios,
    "question-answering": question_answering,
}


def main() -> None:
    options = _options()
    import torch

    torch.set_num_threads(1)
    figures: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="paper-") as folder:
        place = Place(Path(folder), options.data, options.tiny)
        for name in options.question:
            found = _answer(name, place, options)
            print(f"\n{name}\n")
            figures[name] = QUESTIONS[name].report(found)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def _answer(name: str, place: Place, options: argparse.Namespace) -> dict[str, list[Figures]]:
    """arm → its figures, seed by seed."""
    question, found = QUESTIONS[name], defaultdict[str, list[Figures]](list)
    for seed in range(options.seeds):
        for arm in [arm for arm in question.ARMS if not options.arm or arm in options.arm]:
            case = [name, arm, seed, *(["tiny"] if options.tiny else [])]
            result = _known(options.results, case)
            if result is None:
                result = question.measure(arm, seed, place)
                if options.results is not None:
                    with options.results.open("a") as file:
                        file.write(json.dumps({"case": case, "result": result}) + "\n")
            print(f"{name}, {arm}, seed {seed}: {', '.join(f'{figure} {value:.4g}' for figure, value in result.items())}", flush=True)
            found[arm].append(result)
    return found


def _options() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("question", choices=QUESTIONS, nargs="+")
    parser.add_argument("--data", type=Path, metavar="DIR", help="directory with the SST-2 files")
    parser.add_argument("--arm", action="append", help="only these")
    parser.add_argument("--seeds", type=int, default=3, help="of who has which rows, of fresh weights, of the order of rows")
    parser.add_argument("--tiny", action="store_true", help="a few steps on a few rows: whether it runs at all")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="every run's result is added to it; runs that are in it are not repeated"
    )
    return parser.parse_args()


def _known(results: Path | None, case: list[object]) -> Figures | None:
    if results is None or not results.exists():
        return None
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return next((dict(line["result"]) for line in lines if line["case"] == case), None)


if __name__ == "__main__":
    main()
