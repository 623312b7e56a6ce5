"""What the product makes of a model directory against what transformers makes of it: families × shapes of saving, as a table.

Each cell adds a tiny model, prepares a run, applies a delta to a layer and exports; the numbers of the export must be those of
`from_pretrained`, before and after.
"""

import argparse
import collections
import json
import os
import tempfile
import time
from pathlib import Path

MARKS = {"equal": "=", "fresh": "~", "refused": "x", "different": "DIFFERENT"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", action="append", help="only this one; may be given several times")
    parser.add_argument("--shape", action="append", help="only this one; may be given several times")
    parser.add_argument("--reasons", action="store_true", help="print why a cell is refused or different")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    import torch
    import transformers

    from tests.support.parity import FAMILIES, judge
    from tests.support.shapes import SHAPES

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    families, shapes = chosen.family or list(FAMILIES), chosen.shape or list(SHAPES)
    counts: collections.Counter[str] = collections.Counter()
    cells, began = [], time.monotonic()
    print(f"columns: {', '.join(f'{number} {shape}' for number, shape in enumerate(shapes))}")
    print(f"{'':20}", *(f"{number:2}" for number in range(len(shapes))))
    for family in families:
        line, reasons = [], []
        for shape in shapes:
            with tempfile.TemporaryDirectory() as folder:
                verdict = judge(family, shape, Path(folder))
            line.append(MARKS[verdict.outcome] if verdict else " ")
            if verdict is not None:
                counts[verdict.outcome] += 1
                cells.append(vars(verdict))
                if verdict.outcome == "different" or (chosen.reasons and verdict.reason):
                    reasons.append(f"    {shape}: {verdict.outcome}: {verdict.reason[:200]}")
        print(f"{family:20}", *(f"{mark:>2}" for mark in line), flush=True)
        print(*reasons, sep="\n", end="\n" if reasons else "", flush=True)
    summary = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    print(f"{len(families)} families × {len(shapes)} shapes: {summary}; {time.monotonic() - began:.0f} s")
    print(
        "= equal, ~ equal but for a head that is made afresh on both sides, x refused with a reason, blank: means nothing for this family"
    )
    if chosen.json:
        chosen.json.write_text(json.dumps({"cells": cells, "counts": counts}, indent=1))
    raise SystemExit(1 if counts["different"] else 0)


if __name__ == "__main__":
    main()
