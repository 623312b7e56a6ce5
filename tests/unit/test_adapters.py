"""Adapters are LoRA: what a run trains is, to the bit, what FedAvg over peft's adapters makes; and what it exports peft loads."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks import reference
from benchmarks.reference import Reference
from fedcybgd.agent.messages import Bounds, TrainingOptions
from fedcybgd.agent.training.bounds import check_tensors
from fedcybgd.agent.training.emulator import homes
from fedcybgd.agent.training.errors import PolicyBroken
from fedcybgd.agent.training.visitor import Visitor
from fedcybgd.coordinator.domain.jobs.payloads import ExportPayload
from fedcybgd.coordinator.engine.deltas import open_delta
from fedcybgd.coordinator.engine.export import export
from fedcybgd.coordinator.engine.peft import ExportRefused
from fedcybgd.shared.contract.adapters import FIELD, factors_of, is_factor
from fedcybgd.shared.contract.words import ExportForm
from fedcybgd.shared.files.configuration import ModelUnknown
from fedcybgd.shared.models.assembly import skeleton
from tests.e2e.conftest import write_rows
from tests.support import fedavg, models
from tests.unit.test_fedavg import classifier

OUTER = {"learning_rate": 0.7, "momentum": 0.9, "nesterov": True}
ADAPTERS: dict[str, Any] = {"matrices": ["attention", "intermediate.dense"], "rank": 4, "alpha": 6.0}
TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense"]


def values_of(always: list[str], **adapters: Any) -> dict[str, Any]:
    return {
        "name": "r", "model": "m", "method": "adapters", "task": {"kind": "text-classification", "labels": 2, "max_length": 16},
        "adapters": ADAPTERS | adapters, "schedule": {"cycles": 3, "always": always}, "delta": {"codec": "float32"}, "seed": 3,
        "compression": {"policy": "none"},
        "train": {"epochs": 1.0, "batch_size": 8, "learning_rate": 3e-3, "warmup_steps": 2, "max_grad_norm": None, "precision": "float32",
                  "label_skew": "none"},
    }  # fmt: skip


def tensors_of(run: Reference) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for block in run.blocks for name, tensor in load_file(run.store.path(block.digest)).items()}


def called_by_peft(name: str) -> str:
    """A canonical name as peft has it."""
    inside = name if name.startswith("classifier") else f"bert.{name}"
    return "base_model.model." + inside.replace(".adapter_right", ".lora_A.default.weight").replace(
        ".adapter_left", ".lora_B.default.weight"
    )


@pytest.mark.parametrize(
    ("always", "adapters"),
    [(["pooler", "head"], {}), (["embeddings", "head"], {"outer": OUTER}), (["head"], {"combine": "handed"})],
    ids=["mean", "with embeddings and momentum", "handed"],
)
def test_equal_to_plain_torch_and_peft(tmp_path: Path, always: list[str], adapters: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    folder = classifier(tmp_path / "model")
    partitions = [write_rows(tmp_path / f"rows-{i}.jsonl", i, count) for i, count in enumerate((40, 9, 23))]
    values = values_of(always, **adapters)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours = reference.begin(tmp_path / "ours", folder, values)
        start = tensors_of(ours)
        reference.run(ours, partitions, tmp_path / "scratch", visitors=[Visitor("cpu", whole_tables=True) for _ in partitions])
        config = peft.LoraConfig(r=4, lora_alpha=6.0, target_modules=TARGETS, lora_dropout=0.0)
        model: Any = peft.get_peft_model(fedavg.classifier_in(folder), config).eval()
        parts = {"pooler": "bert.pooler", "head": "classifier", "embeddings": "bert.embeddings"}
        for name in always:
            model.base_model.model.get_submodule(parts[name]).requires_grad_(True)
        factors = {called_by_peft(name): tensor for name, tensor in start.items() if ".adapter_" in name}
        assert not model.load_state_dict(factors, strict=False).unexpected_keys
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        handed = adapters.get("combine") == "handed"
        wanted = fedavg.averaged(model, AutoTokenizer.from_pretrained(folder), partitions, values, 3, adapters.get("outer"), handed)
    finally:
        torch.set_num_threads(threads)
    found = {called_by_peft(name): (name, tensor) for name, tensor in tensors_of(ours).items()}
    for peft_name, tensor in wanted.items():
        name, mine = found[peft_name]
        assert torch.equal(mine, tensor), f"{name}: {(mine - tensor).abs().max()} apart"
        assert not torch.equal(mine, start[name]) or "position" in name or "token_type" in name, name
    frozen = [name for peft_name, (name, _) in found.items() if peft_name not in trainable]
    assert len(frozen) > 10
    assert all(torch.equal(found[called_by_peft(name)][1], start[name]) for name in frozen)


@pytest.mark.parametrize("combine", ["mean", "exact"])
def test_exact_is_the_mean_of_what_agents_have_and_mean_is_not(tmp_path: Path, combine: str) -> None:
    folder = models.tiny_gpt2(tmp_path / "model")
    values = values_of([], combine=combine) | {"task": {"kind": "causal-lm", "max_length": 16}}
    values["adapters"] = {"combine": combine, "rank": 3, "alpha": 5.0, "matrices": ["attention"]}
    values["schedule"]["cycles"], values["train"]["epochs"] = 1, 8.0
    run = reference.begin(tmp_path / "ours", folder, values)
    start = tensors_of(run)
    reference.run(run, [write_rows(tmp_path / f"rows-{i}.jsonl", i, count) for i, count in enumerate((24, 8, 16))], tmp_path / "scratch")
    assert len(run.deltas) == 3
    members = []
    for digest in run.deltas:
        with open_delta(run.store, digest, 1 << 30) as delta:
            members.append({name: start[name] + delta.tensor(name, tuple(start[name].shape), None) for name in delta.names})
    rows = [metrics.rows for metrics in run.metrics]
    end, scale = tensors_of(run), 5 / 3
    weights = [name for name in start if factors_of(name)[0] in start]
    assert len(weights) == 4
    off = 0.0
    for weight in weights:
        left, right = factors_of(weight)
        mean = sum((m[left].double() @ m[right].double()) * (r / sum(rows)) for m, r in zip(members, rows, strict=True))
        wanted = start[weight].double() + mean * scale
        found = end[weight].double() + end[left].double() @ end[right].double() * scale
        off = max(off, float((found - wanted).abs().max()))
    assert off < 1e-6 if combine == "exact" else off > 1e-4
    changed = {name for name, tensor in end.items() if not torch.equal(tensor, start[name])} - {n for n in end if is_factor(n)}
    assert changed == (set(weights) if combine == "exact" else set())


def exported(run: Reference, folder: Path, form: ExportForm = "merged") -> Path:
    beside = [b for b in run.blocks if form == "merged" or b.version or b.block in ("adapters", "head")]
    payload = ExportPayload(after_rounds=1, task=run.spec.task.kind, files=run.file_refs, blocks=beside, form=form)
    folder.mkdir()
    for file in export(run.store, payload).files:
        (folder / file.name).write_bytes(run.store.path(file.digest).read_bytes())
    return folder


def of_family(family: str, folder: Path) -> Path:
    """RoBERTa's head is of two layers; the head of `kept` is the added model's own, which no run makes afresh."""
    if family in ("bert", "gpt2", "llama"):
        made: Path = getattr(models, f"tiny_{family}")(folder)
        return made
    from transformers import BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

    models.tiny_bert(folder)
    torch.manual_seed(5)
    if family == "kept":
        BertForSequenceClassification.from_pretrained(folder, num_labels=2).save_pretrained(folder)
        return folder
    said = json.loads((folder / "config.json").read_text())
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
    config = RobertaConfig(**{size: said[size] for size in sizes}, pad_token_id=0, type_vocab_size=1, num_labels=2)
    RobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["bert", "kept", "roberta", "gpt2", "llama"])
def test_an_export_computes_what_was_trained_merged_or_beside_the_base(tmp_path: Path, family: str) -> None:
    """GPT-2's matrices lie the other way round."""
    folder, labelled = of_family(family, tmp_path / "model"), family in ("bert", "kept", "roberta")
    kind = "text-classification" if labelled else "causal-lm"
    labels = {"labels": 2} if labelled else {}
    values = values_of(["head"] if family in ("bert", "roberta") else []) | {"task": {"kind": kind, "max_length": 16} | labels}
    values["adapters"] = {"rank": 3, "alpha": 5.0}
    values["schedule"]["cycles"], values["train"]["epochs"] = 1, 6.0
    run = reference.begin(tmp_path / "ours", folder, values)
    partitions = [write_rows(tmp_path / f"rows-{i}.jsonl", i, 16) for i in range(2)]
    reference.run(run, partitions, tmp_path / "scratch")
    base = tensors_of(reference.begin(tmp_path / "again", folder, values))
    changed = {name for name, tensor in tensors_of(run).items() if not torch.equal(tensor, base[name])}
    assert {name.rpartition(".")[2] for name in changed} - {"weight", "bias"} == {"adapter_left", "adapter_right"}

    auto: Any = AutoModelForSequenceClassification if labelled else AutoModelForCausalLM
    merged, info = auto.from_pretrained(exported(run, tmp_path / "merged"), output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert "adapters" not in (tmp_path / "merged" / "config.json").read_text()
    tokens = torch.tensor([[2, 60, 61, 62, 63, 64, 3], [2, 70, 60, 71, 5, 66, 3]])
    with torch.inference_mode():
        logits = merged.eval()(tokens).logits
        before = auto.from_pretrained(folder, **({"num_labels": 2} if labelled else {})).eval()(tokens).logits
    assert not torch.allclose(logits, before, atol=1e-3)
    held_out = write_rows(tmp_path / "held-out.jsonl", 9, 8)
    scored = run.evaluate(held_out).loss
    assert math.isfinite(scored)

    peft = pytest.importorskip("peft")
    given = auto.from_pretrained(folder, dtype=torch.float32, **({"num_labels": 2} if labelled else {}))
    beside = peft.PeftModel.from_pretrained(given, exported(run, tmp_path / "peft", "peft")).eval()
    with torch.inference_mode():
        assert torch.allclose(beside(tokens).logits, logits, atol=1e-5)
    alike = beside.merge_and_unload().state_dict()
    for name, tensor in merged.state_dict().items():
        assert torch.allclose(alike[name], tensor, atol=1e-7), name


def test_what_a_peft_directory_has_no_place_for_is_named(tmp_path: Path) -> None:
    values = values_of(["embeddings"], rank=2) | {"task": {"kind": "causal-lm", "max_length": 16}}
    values["adapters"], values["schedule"]["cycles"] = {"rank": 2}, 1
    run = reference.begin(tmp_path / "ours", models.tiny_llama(tmp_path / "tied"), values)
    reference.run(run, [write_rows(tmp_path / "rows.jsonl", 0, 8)], tmp_path / "scratch")
    with pytest.raises(ExportRefused, match=r"embed_tokens was trained beside the adapters and is tied .* merged"):
        exported(run, tmp_path / "peft", "peft")


def visited(run: Reference, rows: Path, scratch: Path, **options: Any) -> dict[str, torch.Tensor]:
    """The factors after one visit; `options` are those of [training]."""
    reference.run(run, [rows], scratch, rounds=1, visitors=[Visitor("cpu", TrainingOptions.model_validate(options))])
    [digest] = [block.digest for block in run.blocks if block.block == "adapters"]
    return load_file(run.store.path(digest))


@pytest.mark.parametrize("policy", ["none", "int8"])
def test_saving_memory_changes_no_bit_of_adapters(tmp_path: Path, policy: str) -> None:
    """Beside matrices of the upper layer alone, so that what enters it may be computed once."""
    folder, rows = models.tiny_bert(tmp_path / "model", layers=3), write_rows(tmp_path / "rows.jsonl", 0, 8)
    values = values_of(["head"]) | {"compression": {"policy": policy}, "adapters": {"matrices": ["layer.2.*"], "rank": 2}}
    values["train"] |= {"batch_size": 8, "epochs": 3.0}
    off = {"checkpointing": "off", "prefix_cache": "off"}
    plain = visited(reference.begin(tmp_path / "plain", folder, values), rows, tmp_path / "scratch", **off)
    assert len(plain) == 12
    assert all(tensor.any() for tensor in plain.values())
    for number, saving in enumerate([{"checkpointing": "on"}, {"prefix_cache": "memory"}]):
        saved = visited(reference.begin(tmp_path / f"saved-{number}", folder, values), rows, tmp_path / "scratch", **off | saving)
        assert all(torch.equal(saved[name], tensor) for name, tensor in plain.items()), saving


def test_what_forbids_a_layer_forbids_the_adapters_beside_its_matrices(tmp_path: Path) -> None:
    run = reference.begin(tmp_path / "ours", models.tiny_bert(tmp_path / "model"), values_of(["head"]))
    home = homes(run.files["config.json"], "text-classification")
    factors = [name for name in home if is_factor(name)]
    assert {home[name] for name in factors} == {"layers.0", "layers.1"}
    trained = {"adapters": factors}
    for never in (["layers.1"], ["layers"], ["lay*"]):
        with pytest.raises(PolicyBroken, match=r"which is of block layers\.\d, would be trained as adapters"):
            check_tensors(Bounds(steps=1, seconds=1, rows=1, never=never), trained, home)
    check_tensors(Bounds(steps=1, seconds=1, rows=1, never=["embeddings", "head"]), trained, home)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"rank": 4, "alpha": 1.0, "matrices": ["encoder.layer.0.attention.self.qkv.weight"]}, "no such matrix"),
        ({"rank": 4, "alpha": 1.0, "matrices": ["embeddings.word_embeddings.weight"]}, "no such matrix"),
        ({"rank": 33, "alpha": 1.0, "matrices": ["encoder.layer.0.output.dense.weight"]}, "no adapter of rank 33"),
        ({"rank": 4, "alpha": 1.0, "matrices": ["encoder.layer.0.output.dense.weight"] * 2}, "has one already"),
        ({"rank": 0, "alpha": 1.0, "matrices": []}, "rank"), (["all"], "Adapters"),
    ],
)  # fmt: skip
def test_a_configuration_with_nonsense_for_adapters_makes_no_model(tmp_path: Path, said: Any, says: str) -> None:
    config = json.loads((models.tiny_bert(tmp_path / "model") / "config.json").read_text())
    with pytest.raises(ModelUnknown, match=says):
        skeleton(config | {FIELD: said}, "text-classification")
