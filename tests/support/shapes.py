"""Every odd shape that a checkpoint is found in: each a change of what `save_pretrained` writes."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LAYERS = 2
LABELS = 3

State = dict[str, Tensor]


@dataclass
class Saved:
    """A checkpoint before it is written: tensors by file, and its configuration."""

    model: Any
    tensors: State
    config: dict[str, Any]
    files: dict[str, State] | None = None
    """several files; None: `tensors` in model.safetensors"""
    index: dict[str, str] | None = None

    @property
    def prefix(self) -> str:
        return str(self.model.base_model_prefix) + "."

    @property
    def ties(self) -> dict[str, str]:
        keys: dict[str, str] = self.model.get_expanded_tied_weights_keys(all_submodels=True)
        return {target: source for target, source in keys.items() if "embed" in source or "wte" in source}


Shape = Callable[[Saved], Saved | None]
"""None: the shape means nothing for this family"""
SHAPES: dict[str, Shape] = {}


def shape(name: str) -> Callable[[Shape], Shape]:
    def add(function: Shape) -> Shape:
        SHAPES[name] = function
        return function

    return add


def renamed(saved: Saved, rename: Callable[[str], str]) -> Saved | None:
    tensors = {rename(name): tensor for name, tensor in saved.tensors.items()}
    return dataclasses.replace(saved, tensors=tensors) if tensors.keys() != saved.tensors.keys() else None


def configured(saved: Saved, **values: Any) -> Saved:
    config = saved.config | values
    return dataclasses.replace(saved, config={name: value for name, value in config.items() if value is not ...})


shape("as saved")(lambda saved: saved)


@shape("as in the model")
def as_in_the_model(saved: Saved) -> Saved | None:
    tensors = {name: t.clone() for name, t in saved.model.state_dict().items() if name not in saved.ties}
    return dataclasses.replace(saved, tensors=tensors) if tensors.keys() != saved.tensors.keys() else None


for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16), ("float64", torch.float64)):

    @shape(name)
    def cast(saved: Saved, dtype: torch.dtype = dtype) -> Saved:
        tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in saved.tensors.items()}
        return configured(dataclasses.replace(saved, tensors=tensors), dtype=str(dtype).removeprefix("torch."))


@shape("mixed dtypes")
def mixed(saved: Saved) -> Saved:
    dtypes = (torch.bfloat16, torch.float32, torch.float16)
    tensors = {n: t.to(dtypes[i % 3]) if t.is_floating_point() else t for i, (n, t) in enumerate(saved.tensors.items())}
    return dataclasses.replace(saved, tensors=_alike_experts(tensors))


def _alike_experts(tensors: State) -> State:
    # torch joins tensors of one dtype only: experts of a layer that differ in it are no checkpoint that transformers can load.
    return {name: t.to(torch.bfloat16) if "experts" in name else t for name, t in tensors.items()}


@shape("prefix missing")
def unprefixed(saved: Saved) -> Saved | None:
    return renamed(saved, lambda name: name.removeprefix(saved.prefix))


@shape("prefix doubled")
def doubled(saved: Saved) -> Saved | None:
    return renamed(saved, lambda name: saved.prefix + name if name.startswith(saved.prefix) else name)


@shape("prefix of a wrapper")
def wrapped(saved: Saved) -> Saved | None:
    return renamed(saved, lambda name: "module." + name)


@shape("base alone")
def base_alone(saved: Saved) -> Saved:
    tensors = {name: t for name, t in saved.tensors.items() if name.startswith(saved.prefix)}
    return dataclasses.replace(saved, tensors=tensors)


@shape("head under another name")
def other_head(saved: Saved) -> Saved | None:
    return renamed(saved, lambda name: name if name.startswith(saved.prefix) else f"foreign_{name}")


@shape("tie under the first name")
def first_name(saved: Saved) -> Saved | None:
    if not saved.ties:
        return None
    tensors = {name: t for name, t in saved.tensors.items() if name not in saved.ties}
    return dataclasses.replace(saved, tensors=tensors)


@shape("tie under the other name")
def other_name(saved: Saved) -> Saved | None:
    if not saved.ties:
        return None
    tensors = {name: t for name, t in saved.tensors.items() if name not in saved.ties.values()}
    for target, source in saved.ties.items():
        tensors[target] = saved.tensors[source].clone()
    return dataclasses.replace(saved, tensors=tensors)


@shape("tie under both names")
def both_names(saved: Saved) -> Saved | None:
    if not saved.ties:
        return None
    return dataclasses.replace(saved, tensors=saved.tensors | {t: saved.tensors[s].clone() for t, s in saved.ties.items()})


@shape("tie under neither name")
def neither_name(saved: Saved) -> Saved | None:
    if not saved.ties:
        return None
    gone = {*saved.ties, *saved.ties.values()}
    return dataclasses.replace(saved, tensors={name: t for name, t in saved.tensors.items() if name not in gone})


@shape("tied, two matrices")
def two_matrices(saved: Saved) -> Saved | None:
    if not saved.ties:
        return None
    return dataclasses.replace(saved, tensors=saved.tensors | {t: saved.tensors[s] + 0.1 for t, s in saved.ties.items()})


@shape("tied flag contradicts")
def flag(saved: Saved) -> Saved | None:
    if "tie_word_embeddings" not in saved.config or not type(saved.model)._tied_weights_keys:
        return None
    return configured(saved, tie_word_embeddings=not saved.config["tie_word_embeddings"])


@shape("buffers of old versions")
def old_buffers(saved: Saved) -> Saved:
    positions = torch.arange(32)[None]
    more: State = {"freqs_cis": torch.ones(4, dtype=torch.complex64)}
    for name in saved.tensors:
        stem, _, leaf = name.rpartition(".")
        if leaf == "weight" and "embed" in stem and stem.endswith("embeddings.word_embeddings"):
            more[f"{stem.rpartition('.')[0]}.position_ids"] = positions
        for attention in ("attn", "attention", "self_attn"):
            before, found, _ = name.partition(f".{attention}.")
            if found and before.rpartition(".")[2].isdigit():
                more[f"{before}.{attention}.bias"] = torch.tril(torch.ones(1, 1, 32, 32, dtype=torch.uint8))
                more[f"{before}.{attention}.masked_bias"] = torch.tensor(-1e4)
                more[f"{before}.{attention}.rotary_emb.inv_freq"] = torch.ones(4)
    has_rotary = any(n.endswith("inv_freq") for n, _ in saved.model.named_buffers())
    more = {name: t for name, t in more.items() if has_rotary or not name.endswith("inv_freq")}
    return dataclasses.replace(saved, tensors=saved.tensors | more)


@shape("mask in float")
def float_mask(saved: Saved) -> Saved | None:
    if saved.config["model_type"] not in ("gpt2", "gpt_neox"):
        return None
    stem = "transformer.h.{}.attn.bias" if saved.config["model_type"] == "gpt2" else "gpt_neox.layers.{}.attention.bias"
    masks = {stem.format(index): torch.tril(torch.ones(1, 1, 32, 32)) for index in range(LAYERS)}
    return dataclasses.replace(saved, tensors=saved.tensors | masks)


@shape("gamma and beta")
def legacy_norm(saved: Saved) -> Saved | None:
    def rename(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    return renamed(saved, rename)


shape("architectures missing")(lambda saved: configured(saved, architectures=...))
shape("architectures null")(lambda saved: configured(saved, architectures=None))
shape("architectures unknown")(lambda saved: configured(saved, architectures=["BertForJointIntent"]))
shape("architectures foreign")(lambda saved: configured(saved, architectures=["T5ForConditionalGeneration"]))


@shape("architectures of the base")
def base_named(saved: Saved) -> Saved:
    return configured(saved, architectures=[type(getattr(saved.model, saved.model.base_model_prefix)).__name__])


def _cut(saved: Saved, number: int) -> dict[str, State]:
    """Files that cut through layers: tensors are dealt out one by one."""
    files: dict[str, State] = {f"model-{i + 1:05}-of-{number:05}.safetensors": {} for i in range(number)}
    for position, (name, tensor) in enumerate(saved.tensors.items()):
        files[f"model-{position % number + 1:05}-of-{number:05}.safetensors"][name] = tensor
    return files


@shape("several files")
def several(saved: Saved) -> Saved:
    files = _cut(saved, 3)
    return dataclasses.replace(saved, files=files, index={name: file for file, held in files.items() for name in held})


@shape("model beside an index")
def beside(saved: Saved) -> Saved:
    files = _cut(saved, 2)
    index = {name: file for file, held in files.items() for name in held}
    other = {file: {name: t + 1 for name, t in held.items()} for file, held in files.items()}
    return dataclasses.replace(saved, files=other | {"model.safetensors": saved.tensors}, index=index)


@shape("other files beside")
def others(saved: Saved) -> Saved:
    state = {"optimizer.state": torch.ones(3), next(iter(saved.tensors)): torch.ones(2)}
    return dataclasses.replace(saved, files={"model.safetensors": saved.tensors, "training_state.safetensors": state})


@shape("a file is missing")
def file_missing(saved: Saved) -> Saved:
    changed = several(saved)
    assert changed.files is not None
    changed.files.pop("model-00002-of-00003.safetensors")
    return changed


def _embedding(saved: Saved) -> str | None:
    """The table that tokens are looked up in; a model of images has none."""
    found = saved.model.get_input_embeddings()
    if not isinstance(found, torch.nn.Embedding):
        return None
    full = next(name for name, module in saved.model.named_modules() if module is found) + ".weight"
    return full if full in saved.tensors else next(n for n in saved.tensors if n.endswith(full.partition(".")[2]))


@shape("more embedding rows")
def more_rows(saved: Saved) -> Saved | None:
    if (name := _embedding(saved)) is None:
        return None
    return dataclasses.replace(saved, tensors=saved.tensors | {name: torch.cat([saved.tensors[name], saved.tensors[name][:3]])})


@shape("fewer embedding rows")
def fewer_rows(saved: Saved) -> Saved | None:
    if (name := _embedding(saved)) is None:
        return None
    return dataclasses.replace(saved, tensors=saved.tensors | {name: saved.tensors[name][:-3].clone()})


@shape("another vocabulary size")
def other_vocabulary(saved: Saved) -> Saved | None:
    return None if _embedding(saved) is None else configured(saved, vocab_size=saved.config["vocab_size"] + 3)


@shape("a tensor is missing")
def tensor_missing(saved: Saved) -> Saved:
    name = [n for n, t in saved.tensors.items() if t.ndim > 1 and n.startswith(saved.prefix)][-1]
    return dataclasses.replace(saved, tensors={n: t for n, t in saved.tensors.items() if n != name})


@shape("a layer too many")
def more_layers(saved: Saved) -> Saved:
    more = {n.replace(".0.", f".{LAYERS}.", 1): t.clone() for n, t in saved.tensors.items() if ".0." in n}
    return dataclasses.replace(saved, tensors=saved.tensors | more)


@shape("integers")
def integers(saved: Saved) -> Saved:
    name = [n for n, t in saved.tensors.items() if t.ndim > 1 and n.startswith(saved.prefix)][-1]
    return dataclasses.replace(saved, tensors=saved.tensors | {name: saved.tensors[name].to(torch.int8)})


@shape("fields that contradict the run")
def contradicting(saved: Saved) -> Saved:
    return configured(
        saved, problem_type="regression", use_cache=True, output_hidden_states=True, output_attentions=False, return_dict=False,
        torch_dtype="float16", dtype="bfloat16", finetuning_task="sst2", gradient_checkpointing=True, attn_implementation="eager",
        label2id={"a": 0, "b": 1, "c": 2}, id2label={"0": "a", "1": "b", "2": "c"},
    )  # fmt: skip


@shape("multi-label in the configuration")
def multi_label(saved: Saved) -> Saved:
    return configured(saved, problem_type="multi_label_classification", output_attentions=True)


@shape("head of other labels")
def other_labels(saved: Saved) -> Saved | None:
    names = [n for n, t in saved.tensors.items() if t.shape[:1] == (LABELS,) and not n.startswith(saved.prefix)]
    if not names:
        return None
    more = {n: torch.cat([saved.tensors[n], saved.tensors[n]]) for n in names}
    labels = {str(i): f"L{i}" for i in range(2 * LABELS)}
    changed = dataclasses.replace(saved, tensors=saved.tensors | more)
    return configured(changed, id2label=labels, label2id={v: int(k) for k, v in labels.items()}, num_labels=...)


@shape("labels of the head contradict the configuration")
def contradicting_head(saved: Saved) -> Saved | None:
    changed = other_labels(saved)
    return None if changed is None else dataclasses.replace(changed, config=saved.config)


@shape("labels of the configuration contradict the head")
def contradicting_labels(saved: Saved) -> Saved | None:
    changed = other_labels(saved)
    return None if changed is None else dataclasses.replace(changed, tensors=saved.tensors)
