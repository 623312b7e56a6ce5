"""Expanded visits: what is trained of layers that a visit does not open, and what becomes of it, to the bit as plain torch has it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks import reference
from benchmarks.reference import Reference
from fedcybgd.agent.messages import Bounds, TrainingOptions
from fedcybgd.agent.training.bounds import check_tensors
from fedcybgd.agent.training.emulator import Emulator, homes
from fedcybgd.agent.training.errors import PolicyBroken
from fedcybgd.agent.training.frozen import QuantizedConv1D, QuantizedLinear
from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.coordinator.domain.corrections import corrections_of
from fedcybgd.coordinator.domain.methods.method import Delivered
from fedcybgd.coordinator.domain.methods.terms import VisitDelta, terms_of
from fedcybgd.coordinator.domain.model_blocks import TensorShape
from fedcybgd.coordinator.domain.opening import needed
from fedcybgd.coordinator.domain.run_file import RunFile
from fedcybgd.coordinator.domain.seat import Seat
from fedcybgd.coordinator.engine.deltas import open_delta
from fedcybgd.shared.contract.adapters import AdaptersRefused, factors_of, is_factor
from fedcybgd.shared.contract.training import Corrections
from fedcybgd.shared.contract.versions import CORRECTIONS
from fedcybgd.shared.files.configuration import ModelUnknown
from fedcybgd.shared.models.adapters import Lent, linear_weights
from tests.e2e.conftest import write_rows
from tests.support import fedavg, models
from tests.support.training import Home
from tests.unit.test_fedavg import classifier
from tests.unit.test_run_file import problems

Tensors = dict[str, torch.Tensor]


def values_of(wave: int = 1, **corrections: Any) -> dict[str, Any]:
    """Both layers of a BERT in turn or at once, with the head along."""
    rate = 3e-3
    return {
        "name": "r", "model": "m", "task": {"kind": "text-classification", "labels": 2, "max_length": 16}, "seed": 3,
        "corrections": {"rank": 3, "alpha": 6.0, "learning_rate": rate} | corrections,
        "schedule": {"cycles": 1, "blocks": ["layers"], "always": ["head"], "wave": wave, "damping": 0.5 if wave > 1 else 1.0,
                     "head_average": "damped"},
        "delta": {"codec": "float32"}, "compression": {"policy": "none"},
        "train": {"epochs": 1.0, "batch_size": 8, "learning_rate": rate, "warmup_steps": 2, "max_grad_norm": None, "precision": "float32",
                  "label_skew": "none"},
    }  # fmt: skip


def tensors_of(run: Reference) -> Tensors:
    return {name: tensor.clone() for block in run.blocks for name, tensor in load_file(run.store.path(block.digest)).items()}


class Corrected(nn.Module):
    """A linear layer and what is added to what it computes."""

    def __init__(self, linear: nn.Linear, left: torch.Tensor, right: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.linear, self.left, self.right, self.scale = linear, nn.Parameter(left), nn.Parameter(right), scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        plain: torch.Tensor = self.linear(x)  # first: in another order gradients are added up in another order, too
        return plain + functional.linear(functional.linear(x, self.right), self.left) * self.scale


def plainly(folder: Path, rows: Path, values: dict[str, Any], start: Tensors, layer: int, seed: int) -> Tensors:
    """What plain torch makes of the visit of a layer: trained tensors, and the factors beside the matrices of the other layer."""
    model = fedavg.classifier_in(folder)
    model.load_state_dict({n if n.startswith("classifier") else f"bert.{n}": t for n, t in start.items()}, strict=False)
    encoder, placed = model.bert.encoder.layer, {}
    model.requires_grad_(False)
    for part in (encoder[layer], model.classifier):
        part.requires_grad_(True)
    drawn = Lent(model, {w: s for w, s in linear_weights(model).items() if f".{1 - layer}." in w}, 3, 2.0, seed, "cpu")
    factors = {name: parameter.detach().clone() for name, parameter in drawn.parameters.items()}
    drawn.take_away()
    for name, module in list(encoder[1 - layer].named_modules()):
        if isinstance(module, nn.Linear):
            left, right = factors_of(f"encoder.layer.{1 - layer}.{name}.weight")
            parent, _, leaf = name.rpartition(".")
            setattr(encoder[1 - layer].get_submodule(parent), leaf, made := Corrected(module, factors[left], factors[right], 2.0))
            placed |= {left: made.left, right: made.right}
    assert len(placed) == len(factors) == 12
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    data = [json.loads(line) for line in rows.read_text().splitlines()]
    ids = [tokenizer(row["text"], truncation=True, max_length=16)["input_ids"] for row in data]
    fedavg._visit(model, tokenizer, ids, [row["label"] for row in data], values["train"], seed)
    trained = {f"encoder.layer.{layer}.{name}": t for name, t in encoder[layer].named_parameters()}
    trained |= {f"classifier.{name}": t for name, t in model.classifier.named_parameters()}
    return {name: tensor.detach().clone() for name, tensor in (trained | placed).items()}


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """In this order on every machine."""
    total = left[:, :1] * right[:1]
    for index in range(1, left.shape[1]):
        total = total + left[:, index : index + 1] * right[index : index + 1]
    return total


@pytest.mark.parametrize("wave", [1, 2])
def test_equal_to_plain_torch(tmp_path: Path, wave: int) -> None:
    folder, values = classifier(tmp_path / "model"), values_of(wave)
    partitions = [write_rows(tmp_path / f"rows-{i}.jsonl", i, count) for i, count in enumerate((40, 9))]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = reference.begin(tmp_path / "ours", folder, values)
        present = tensors_of(run)
        reference.run(run, partitions, tmp_path / "scratch")
        orders = [run.spec.round(run.trained, 2, number) for number in range(2 // wave)]
        for members in orders:
            made = [plainly(folder, partitions[o.agent], values, present, int(o.block[-1]), o.told["seed"]) for o in members]
            base, present = present, dict(present)
            for order, visit in zip(members, made, strict=True):
                weight = values["schedule"]["damping"]
                for name, tensor in visit.items():
                    share = weight / wave if name.startswith("classifier") else weight
                    if not is_factor(name):
                        present[name] = present[name] + (tensor - base[name]) * share
                for name in [n for n in base if factors_of(n)[0] in visit]:
                    assert f".{1 - int(order.block[-1])}." in name
                    present[name] = present[name] + product(*(visit[f] for f in factors_of(name))) * 2.0 * (weight / wave)
    finally:
        torch.set_num_threads(threads)
    start, found = tensors_of(reference.begin(tmp_path / "again", folder, values)), tensors_of(run)
    for name, tensor in present.items():
        assert torch.equal(found[name], tensor), f"{name}: {(found[name] - tensor).abs().max()} apart"
    assert {name for name in start if not torch.equal(start[name], found[name])} == {
        name for name in start if name.startswith(("encoder", "classifier"))
    }


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_merged_the_model_computes_what_it_did_with_factors(tmp_path: Path, family: str) -> None:
    """GPT-2's matrices lie the other way round."""
    auto: Any = AutoModelForSequenceClassification if family == "bert" else AutoModelForCausalLM
    model = auto.from_pretrained(getattr(models, f"tiny_{family}")(tmp_path / "model")).eval()
    before, matrices = dict(model.state_dict()), linear_weights(model)
    lent = Lent(model, matrices, 2, 1.5, 7, "cpu")
    tokens = torch.tensor([[2, 60, 61, 62, 63, 64, 3]])
    with torch.no_grad():
        plain = model(tokens).logits
        for parameter in lent.parameters.values():
            parameter += torch.randn(parameter.shape) * 0.3
        moved, held = model(tokens).logits, {name: t.clone() for name, t in lent.parameters.items()}
        lent.take_away()
        assert torch.equal(model(tokens).logits, plain), "nothing of them is left"
        assert model.state_dict().keys() == before.keys()
        for weight in matrices:
            left, right = factors_of(weight)
            next(p for n, p in model.named_parameters() if n.endswith(weight)).add_(held[left] @ held[right] * 1.5)
        assert torch.allclose(model(tokens).logits, moved, atol=1e-5)
    assert not torch.allclose(plain, moved, atol=1e-3)


def test_factors_that_could_not_be_placed_leave_the_model_as_it_was(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(models.tiny_llama(tmp_path / "model")).eval()
    matrices, before = linear_weights(model), set(dict(model.named_parameters()))
    with pytest.raises(RuntimeError):
        Lent(model, matrices, 2, 1.5, 7, "no-such-device")
    assert set(dict(model.named_parameters())) == before
    assert not any(module._forward_hooks for module in model.modules())
    tokens = torch.arange(6)[None]
    plain = model(tokens).logits
    Lent(model, matrices, 2, 1.5, 7, "cpu").take_away()
    assert torch.equal(model(tokens).logits, plain)


def test_what_is_not_visited_by_the_run_is_not_corrected_and_a_run_is_the_same_twice(tmp_path: Path) -> None:
    folder = models.tiny_bert(tmp_path / "model", layers=3)
    rows = [write_rows(tmp_path / "rows.jsonl", 0, 16)]
    values = values_of() | {"compression": {"policy": "int8"}, "delta": {"codec": "int8"}}
    values["schedule"] |= {"blocks": ["layers.1", "layers.2"]}
    runs = [reference.begin(tmp_path / f"ours-{i}", folder, values) for i in range(2)]
    start = runs[0].digests()
    for number, run in enumerate(runs):
        # One agent that stays warm, and one that begins anew for each visit.
        for _ in range(2):
            reference.run(run, rows, tmp_path / "scratch", rounds=1, visitors=[Visitor("cpu")] if number else None)
    assert runs[0].digests() == runs[1].digests()
    assert {name for name, digest in runs[0].digests().items() if digest != start[name]} == {"layers.1", "layers.2", "head"}
    assert [block.version for block in runs[0].blocks if block.block in ("layers.1", "layers.2")] == [2, 2]


BLOCKS = {
    name: [TensorShape(name=f"{name}.q", shape=[4, 4], linear=name.startswith("layers")), TensorShape(name=f"{name}.b", shape=[4])]
    for name in ("embeddings", "layers.0", "layers.1", "layers.2", "norm")
}


@pytest.mark.parametrize(
    ("visited", "layers", "always", "wanted"),
    [
        ("layers.1", "all", [], [0, 2]), ("layers.1", "above", [], [2]), ("layers.2", "above", [], None), ("embeddings", "above", [], [0, 1, 2]),
        ("norm", "above", [], None), ("norm", "all", [], [0, 1, 2]), ("layers.1", "above", ["embeddings"], [0, 2]),
        ("layers.1", "all", ["layers.0"], [2]), ("layers.1", "above", ["norm"], [2]),
    ],
)  # fmt: skip
def test_which_layers_a_visit_corrects(visited: str, layers: str, always: list[str], wanted: list[int] | None) -> None:
    spec = RunFile.model_validate(
        {"name": "r", "model": "m", "task": {"kind": "causal-lm"}, "schedule": {"always": always}, "train": {"learning_rate_decay": 0.5},
         "corrections": {"layers": layers, "learning_rate": 8e-3, "rank": 2, "alpha": 3.0}}
    )  # fmt: skip
    seat = Seat(round=9, number=0, cycle=2, blocks=(visited,), agent=None, learning_rate=1, always_learning_rate=1, seed=1)
    found = corrections_of(spec, seat, BLOCKS, [name for name in BLOCKS if name not in always])
    matrices = None if wanted is None else [f"layers.{number}.q" for number in wanted]
    assert found == (None if matrices is None else Corrections(rank=2, scale=1.5, learning_rate=2e-3, matrices=matrices))
    assert needed(spec) == CORRECTIONS


def test_corrections_are_a_mean_over_the_seats_however_many_have_come() -> None:
    schedule = {"wave": 4, "damping": 0.4, "always": ["head"]}
    spec = RunFile.model_validate({"name": "r", "model": "m", "task": {"kind": "causal-lm"}, "corrections": {}, "schedule": schedule})
    deltas = [VisitDelta(f"{i}", f"asg_{i}", Delivered(i, None, 1), None if i == 2 else 1.5) for i in range(4)]
    for members in ([0, 1, 2, 3], [0, 2], [1, 3]):
        terms, aggregate = terms_of(spec, "layers.1", [deltas[i] for i in members], 4)
        assert (aggregate, [(t.digest, t.weight, t.scale) for t in terms]) == (
            "sum", [(f"{i}", 0.4, None) if i == 2 else (f"{i}", 0.1, 1.5) for i in members],
        )  # fmt: skip
    [half] = [terms_of(spec, "layers.1", [deltas[1]], 4)[0][0].scaled(0.5)]
    assert (half.weight, half.scale) == (0.05, 1.5)


def visited(run: Reference, rows: Path, scratch: Path, **options: Any) -> Tensors:
    """The delta of the visit of the upper layer; `options` are those of [training]."""
    reference.run(run, [rows], scratch, rounds=3, visitors=[Visitor("cpu", TrainingOptions.model_validate(options))])
    with open_delta(run.store, run.deltas[1], 1 << 30) as delta:
        return {name: delta.tensor(name, tuple(delta._tensors[name].shape)) for name in sorted(delta.names)}


@pytest.mark.parametrize(("layers", "saving"), [("all", {"checkpointing": "on"}), ("above", {"prefix_cache": "memory"})])
def test_saving_memory_changes_no_bit(tmp_path: Path, layers: str, saving: dict[str, str]) -> None:
    folder, rows = models.tiny_bert(tmp_path / "model", layers=3), write_rows(tmp_path / "rows.jsonl", 0, 8)
    values = values_of(layers=layers) | {"compression": {"policy": "int8"}}
    values["train"] |= {"epochs": 3.0}
    off = {"checkpointing": "off", "prefix_cache": "off"}
    plain = visited(reference.begin(tmp_path / "plain", folder, values), rows, tmp_path / "scratch", **off)
    factors = [name for name in plain if is_factor(name)]
    assert len(factors) == (24 if layers == "all" else 12)
    assert all(plain[name].any() for name in factors)
    saved = visited(reference.begin(tmp_path / "saved", folder, values), rows, tmp_path / "scratch", **off | saving)
    assert all(torch.equal(saved[name], tensor) for name, tensor in plain.items())


@pytest.mark.parametrize(("family", "kind"), [("bert", QuantizedLinear), ("gpt2", QuantizedConv1D)])
def test_what_is_corrected_stays_quantized_in_memory(tmp_path: Path, bert: Path, family: str, kind: type[nn.Module]) -> None:
    home = Home(tmp_path, bert, family)
    request = home.request("layers.2", codec="int4")
    emulator = Emulator(Path(request.files["config.json"]), home.task, "cpu", torch.float32, None)
    emulator.update(request.shards, ["layers.2"])
    emulator.open(home.path("layers.2", "exact"))
    matrices = [n for n in linear_weights(home.model) if emulator.layer_of(n) in (0, 1)]
    given = emulator.correct(Corrections(rank=2, scale=1.0, learning_rate=1.0, matrices=matrices), seed=1)
    modules = [module for module in emulator.model.modules() if "adapter_left" in module._parameters]
    assert len(modules) == len(matrices) == len(given) // 2 >= 8
    assert {type(module) for module in modules} == {kind}
    assert all(module._parameters["weight"].device.type == "meta" for module in modules)  # type: ignore[union-attr]
    emulator.close()
    assert not [module for module in emulator.model.modules() if "adapter_left" in module._parameters or module._forward_hooks]


@pytest.mark.parametrize(
    ("matrix", "rank"),
    [("encoder.layer.0.attention.self.qkv.weight", 2), ("embeddings.word_embeddings.weight", 2), ("encoder.layer.1.output.dense.weight", 2),
     ("encoder.layer.0.output.dense.weight", 33)],
)  # fmt: skip
def test_a_visit_that_would_correct_what_it_cannot_trains_nothing(tmp_path: Path, bert: Path, matrix: str, rank: int) -> None:
    home = Home(tmp_path, bert, "bert", hidden_size=32, intermediate_size=64)
    request = home.request("layers.1")
    said = Corrections(rank=rank, scale=1.0, learning_rate=1e-2, matrices=["encoder.layer.2.output.dense.weight", matrix])
    asked = request.model_copy(update={"train": request.train.model_copy(update={"corrections": said})})
    visitor = Visitor("cpu")
    with pytest.raises(ModelUnknown, match=r"correct.*" if rank == 2 else "rank 33"):
        visitor.visit(asked, lambda _: None, lambda: False)
    assert not Path(request.delta_path).exists()
    visitor.visit(request, lambda _: None, lambda: False)  # and the next one finds a model without factors


def test_what_forbids_a_layer_forbids_its_corrections(tmp_path: Path) -> None:
    run = reference.begin(tmp_path / "ours", models.tiny_bert(tmp_path / "model"), values_of())
    home = homes(run.files["config.json"], "text-classification")
    matrices = [t.name for stored in run.stored for t in stored.tensors if t.linear]
    assert {home[name] for name in matrices} == {"layers.0", "layers.1"}
    with pytest.raises(PolicyBroken, match=r"which is of block layers\.1, would be trained as a correction"):
        check_tensors(Bounds(steps=1, seconds=1, rows=1, never=["layers.1"]), {"a correction": matrices}, home)


@pytest.mark.parametrize(
    ("corrections", "says"),
    [({"rank": 33}, r"corrections\.rank is 33, .*: 32 at the most"), ({"matrices": ["qkv"]}, r"corrections\.matrices: 'qkv' means no linear matrix")],
)  # fmt: skip
def test_corrections_that_a_model_has_no_place_for_are_refused(tmp_path: Path, corrections: dict[str, Any], says: str) -> None:
    with pytest.raises(AdaptersRefused, match=says):
        reference.begin(tmp_path / "ours", models.tiny_bert(tmp_path / "model"), values_of(**corrections))


CYCLE = "name: r\nmodel: m\ntask: {kind: causal-lm}\n"


@pytest.mark.parametrize(
    ("lines", "line", "field", "says"),
    [
        ("corrections: {rank: 0}", 4, "corrections.rank", "must be 1 or more"), ("corrections: {layers: below}", 4, "corrections.layers", "'above'"),
        ("corrections: {}\ncompression: {policy: hybrid}", 5, "compression.policy", "none, int8 or int4"),
        ("corrections: {}\ncompression: {policy: auto}", 5, "compression.policy", "none, int8 or int4"),
        ("corrections: {}\nadmission: {average: median}", 5, "admission.average", "say mean"),
        ("method: whole\ncorrections: {rank: 2}", 5, "corrections.rank", "`method: block-cycle`"),
        ("method: adapters\ncorrections: {}", 5, "corrections", "`method: block-cycle`"),
    ],
)  # fmt: skip
def test_what_a_run_file_says_of_corrections_in_vain_is_refused(lines: str, line: int, field: str, says: str) -> None:
    [(where, named, message)] = problems(CYCLE + lines + "\n")
    assert (where, named, says in message) == (line, field, True), message
