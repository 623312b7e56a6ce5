"""What becomes of a block's gain when another block is trained beside it, or before it?

Layers are trained by visits of their own, each by another agent and all from the same base, as in a wave. L(S) is the held-out loss of the base with
the steps of the layers S taken, the gain of a layer is g(i) = L() − L(i). The *interaction* of two is I(i, j) = g(i) + g(j) − g(i, j), with
g(i, j) = L() − L(i, j): what is lost of the gains when both steps are taken at once; below 0 they help each other. *Lost* is the sum of I over pairs, of the
sum of g(i) + g(j) over the same pairs, in percent; for neighbours, and for layers with others between them. *Kept* is the gain of more layers at
once of the sum of their gains. The best damping is the one, of some, with the lowest loss. *Cosine* is between the gradient of layer j
(of the loss over the same held-out rows) at the base and after the step of layer i, over ordered pairs; *left* is the second gradient's length, of the first's.

llama      stories260K on Shakespeare, from its pretrained weights; visits of 6 steps, and of 24
gpt2       five layers 64 wide (attention, then MLP), from random weights: the base is 160 steps of central training on Shakespeare
gpt-neox   the same with attention and MLP side by side and rotary positions
bert       MiniLM on SST-2 with its head trained; visits of a pass over an agent's 200 rows
"""

import itertools
import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import device
from benchmarks.paper.federation import AGENTS, Federation, Place, laid_over, plays_spec, reviews_spec
from benchmarks.paper.landscape import Judge, Landscape, cosine
from benchmarks.paper.table import Figures, show, summary
from benchmarks.reading import Reading
from benchmarks.reference import Reference
from examples.demo.tasks import EXAMPLES

ARMS = ("llama, short visits", "llama, long visits", "gpt2", "gpt-neox", "bert")
DAMPINGS = (1.0, 0.7, 0.5, 0.35, 0.25)
FROM_SCRATCH = {"vocab_size": 512, "bos_token_id": 1, "eos_token_id": 2}


def measure(arm: str, seed: int, place: Place) -> Figures:
    family = arm.partition(",")[0]
    federation = _federation(family, seed, place)
    base: Reference = place.once(("base", family), lambda: _base(family, place))
    layers = [b.name for b in base.stored if b.kind == "layer"]
    schedule: dict[str, Any] = {
        "schedule": {"cycles": 1, "blocks": ["layers"], "always": [], "wave": len(layers)},
        "delta": {"codec": "float32"},
    }
    steps = place.size(24 if arm == "llama, long visits" else 6, 2)
    spec = reviews_spec(seed, compression={"policy": "none"}, **schedule) if family == "bert" else plays_spec(seed, steps, **schedule)
    run = replace(base, spec=Reading(spec), trained=layers, metrics=[], rounds_done=0)
    federation.go_on(run, place.scratch())
    judge = Judge(run, federation.held_out, place.size(160 if family == "bert" else 64, 4))
    return figures_of(Landscape(judge, run, base.blocks, run.blocks))


def figures_of(landscape: Landscape) -> Figures:
    layers, begun = landscape.moved, landscape.loss(())
    pairs = list(itertools.combinations(range(len(layers)), 2))
    single = [begun - landscape.loss([layer]) for layer in layers]
    both = {(i, j): begun - landscape.loss([layers[i], layers[j]]) for i, j in pairs}
    found: Figures = {"begun": begun, "gain of one": fmean(single)}
    kinds = {"adjacent": [p for p in pairs if p[1] - p[0] == 1], "distant": [p for p in pairs if p[1] - p[0] > 1]}
    for kind, chosen in kinds.items():
        if chosen:
            gains = sum(single[i] + single[j] for i, j in chosen)
            found[f"lost {kind} %"] = 100 * (gains - sum(both[pair] for pair in chosen)) / gains
    found |= _of_gradients(landscape, kinds)
    third = max(1, len(layers) // 3)
    waves = {"three adjacent": layers[third : third + 3], "three apart": layers[::2][:3], "all": layers}
    for name, members in waves.items():
        gains = sum(single[layers.index(layer)] for layer in members)
        kept = {damping: begun - landscape.loss(members, damping) for damping in DAMPINGS}
        found |= {f"kept of {name} %": 100 * kept[1.0] / gains, f"best damping of {name}": max(kept, key=kept.__getitem__),
                  f"kept of {name} at best %": 100 * max(kept.values()) / gains}  # fmt: skip
    return found


def _of_gradients(landscape: Landscape, kinds: dict[str, list[tuple[int, int]]]) -> Figures:
    layers, before = landscape.moved, landscape.gradients(())
    after = {layer: landscape.gradients([layer]) for layer in layers}
    found: Figures = {}
    for kind, chosen in kinds.items():
        ordered = [(layers[i], layers[j]) for pair in chosen for i, j in (pair, pair[::-1])]
        if ordered:
            found[f"cosine {kind}"] = fmean(cosine(before[j], after[i][j]) for i, j in ordered)
            found[f"left {kind}"] = fmean(float(after[i][j].norm() / before[j].norm()) for i, j in ordered)
    return found


def _base(family: str, place: Place) -> Reference:
    """The run whose blocks all visits begin with; it is not the seeds' to choose."""
    folder, federation = place.folder / f"base-{family}", _federation(family, 0, place)
    if family == "llama":
        return federation.begin(folder, plays_spec(0, 1))
    if family == "bert":
        train = {"epochs": 2, "learning_rate": 5e-3}
        return _trained(federation, folder, reviews_spec(0, schedule={"cycles": 1, "blocks": ["head"], "always": []}, train=train))
    train = {"learning_rate": 5e-3, "warmup_steps": 10}
    return _trained(federation, folder, plays_spec(0, place.size(160, 2), schedule={"always": []}, train=train))


def _federation(family: str, seed: int, place: Place) -> Federation:
    if family == "bert":
        return place.reviews(seed)
    plays = place.plays(seed)
    if family == "llama":
        return plays
    model = place.once(("model", family), lambda: _from_scratch(family, place.folder / f"model-{family}"))
    # A visitor keeps the model of one family.
    return replace(plays, model=model, visitors=place.once(("visitors", family), lambda: [device.visitor()] * AGENTS))


def _trained(federation: Federation, folder: Path, spec: dict[str, Any]) -> Reference:
    """Trained in one place: by one agent, in one visit."""
    run = federation.begin(folder, laid_over(spec, {"whole": {"fraction": 0.1}, "compression": {"policy": "none"}}) | {"method": "whole"})
    federation.go_on(run, folder)
    return run


def _from_scratch(family: str, folder: Path) -> Path:
    import torch
    import transformers

    torch.manual_seed(0)
    made: Any
    if family == "gpt2":
        made = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=64, n_head=4, n_layer=5, n_positions=64, **FROM_SCRATCH))
    else:
        sizes = {
            "hidden_size": 64,
            "intermediate_size": 256,
            "num_attention_heads": 4,
            "num_hidden_layers": 5,
            "max_position_embeddings": 64,
        }
        made = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**sizes, **FROM_SCRATCH))
    made.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(EXAMPLES / "models" / "stories260K" / name, folder / name)
    return folder


def report(found: dict[str, list[Figures]]) -> Figures:
    def columns(names: Collection[str], digits: int) -> dict[str, int]:
        return dict.fromkeys(names, digits)

    show(found, {"begun": 3, "gain of one": 4, **columns(["lost adjacent %", "lost distant %"], 0)}, "pairs")
    show(found, columns([f"{what} {kind}" for what in ("cosine", "left") for kind in ("adjacent", "distant")], 2), "gradients")
    waves: Sequence[str] = ("three adjacent", "three apart", "all")
    show(found, columns([f"kept of {name} %" for name in waves], 0), "at once, undamped")
    show(
        found, {f"{what}": d for name in waves for what, d in ((f"best damping of {name}", 2), (f"kept of {name} at best %", 0))}, "damped"
    )
    return summary(found)
