"""Finds where a model's layers are: by structure first, by a small descriptor where structure does not tell."""

import re
from dataclasses import dataclass

from torch import nn

from fedcybgd.shared.contract.errors import PartitionError


@dataclass(frozen=True)
class Family:
    """What neither the structure of a model type nor its forward pass says."""

    heads: bool = False
    """Whether a layer of this type works with fewer attention heads (or key-value groups) than the configuration says."""
    own_config: bool = False
    """Whether its attention reads head counts from the configuration in every forward, and so needs a copy of it."""


HEADS = Family(heads=True)
# Keyed by `config.model_type`. Structure does not tell whether the code of an attention copes with fewer heads: BLOOM's does not,
# as the model makes one alibi for all its layers.
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "vit"), HEADS),
    **dict.fromkeys(("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "glm", "glm4", "opt"), HEADS),
    "phi3": Family(heads=True, own_config=True),
}

NOT_TRAINED = {
    "reformer": "its layers go backwards in training mode alone, with dropout and with hashes that are drawn anew",
    "cpmant": "it takes the first tokens of a row for its padding, which others have at the end",
}
"""Model types whose forward pass does not show why a visit could not train them, and why."""

NORM_CLASS = re.compile(r"norm", re.IGNORECASE)


@dataclass(frozen=True)
class Stack:
    """The stack of layers: the module path of its list and how many layers it has."""

    path: str
    length: int


def family_of(model: nn.Module) -> Family:
    return FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""), Family())


def canonical(name: str, base_prefix: str) -> str:
    """A tensor's name as the base model calls it: without the prefix that a task model puts before it.

    Base parts of a model are so named alike for every task, and their shards can be shared; heads keep their full name.
    """
    return name.removeprefix(base_prefix + ".") if base_prefix else name


def base_prefix(model: nn.Module) -> str:
    """The prefix of the base model's names inside `model`; empty if `model` is the base model itself."""
    prefix = getattr(model, "base_model_prefix", "")
    return prefix if isinstance(prefix, str) and prefix and hasattr(model, prefix) else ""


def find_stack(model: nn.Module) -> Stack:
    """The module list that holds most parameters; its layers need not be alike.

    Raises `PartitionError` naming the offenders when there is no stack, or more than one.
    """
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
    weights = {path: sum(p.numel() for p in module.parameters()) for path, module in lists}
    # A list inside another list (experts inside a layer) belongs to its layer.
    outer = [path for path, _ in lists if not any(path.startswith(other + ".") for other, _ in lists)]
    outer = [path for path in outer if weights[path]]
    if not outer:
        raise PartitionError("this model has no stack of layers (no list of modules with parameters)")
    best = max(outer, key=lambda path: weights[path])
    rivals = [path for path in outer if path != best and 10 * weights[path] > weights[best]]
    if rivals:
        raise PartitionError(f"this model has several stacks of layers: {', '.join([best, *rivals])}", stacks=[best, *rivals])
    return Stack(best, len(dict(lists)[best]))


def is_norm(module: nn.Module) -> bool:
    return bool(NORM_CLASS.search(type(module).__name__)) and not any(True for _ in module.children())
