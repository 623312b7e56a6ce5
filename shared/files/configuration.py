"""A model's configuration as somebody supplied it: what of it is used, and what never is."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedcybgd.shared.contract.errors import FedError

MACHINE_FIELDS = frozenset(
    {
        "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "transformers_weights",
        "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset",
        "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
        "use_kernels", "kernel_config", "fusion_config", "distributed_config",
    }
)  # fmt: skip
"""Fields that say where a model came from or by which code it is computed: each machine decides that for itself."""

OF_ONE_CALL = frozenset(
    {
        "return_dict", "use_return_dict", "output_hidden_states", "output_attentions", "output_router_logits", "torchscript",
        "gradient_checkpointing", "chunk_size_feed_forward",
    }
)  # fmt: skip
"""Fields that say what a call of the model returns or stores, or in what pieces it computes: whoever calls it asks for what it needs."""

OF_THE_WEIGHTS = frozenset({"torch_dtype", "dtype"})
"""Fields that name a dtype: weights have the one that they are stored in, and are computed with in float32 or as a run says."""

QUANTIZATION = "quantization_config"
"""The field that says how the checkpoint's weights are quantized: where it says nothing, transformers loads no model that has it."""
QUANTIZED = "this checkpoint is quantized; add the original one, whose weights are floats"

HIDDEN_SIZE = ("hidden_size", "n_embd", "d_model", "dim")
"""The names that configurations have for the width of the hidden states."""

SPECIAL_TOKENS = {"deit": 2, "ijepa": 0, "siglip": 0}
"""Tokens of an image that are no patches of it; of other types it is one, and what `num_register_tokens` says."""

# Above what anybody has published, and below what building the model would take minutes or gigabytes for.
MOST: dict[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 512),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 1 << 25),
    **dict.fromkeys(("vocab_size", "type_vocab_size"), 1 << 22),
    **dict.fromkeys((*HIDDEN_SIZE, "num_labels"), 1 << 18),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "hidden_dim"), 1 << 21),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads"), 1 << 13),
    **dict.fromkeys(("image_size", "patch_size", "num_channels", "num_register_tokens"), 2048),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 1 << 13),
}  # fmt: skip
MOST_NESTED = 32
PROBABILITY = re.compile(r"dropout|pdrop|layerdrop|drop_path|_prob$")
"""Fields that torch takes for a probability, many of them in the first training step only."""
NO_NUMBER = "__float__"
"""As transformers writes numbers into a config.json that JSON has not: {"__float__": "Infinity"}."""
NO_NUMBERS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


class ModelUnknown(FedError):
    """A configuration that transformers cannot make a model of, or that asks for what is never done."""

    code = "model_unknown"


def read_configuration(path: Path) -> dict[str, Any]:
    """What stands in a config.json. Raises `ModelUnknown` where that is no JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelUnknown(f"config.json is no JSON: {in_a_line(error)}") from error
    if not isinstance(found, dict):
        raise ModelUnknown("config.json is no JSON object")
    return found


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Whether a configuration, or that of a part, says that the checkpoint's weights are no floats."""
    return any(part.get(QUANTIZATION) for part in (config, *(v for v in config.values() if isinstance(v, Mapping))))


def without(config: Mapping[str, Any], fields: frozenset[str]) -> dict[str, Any]:
    """The configuration without these fields, at the top and in the configurations of a model's parts."""
    return {
        name: without(value, fields) if name.endswith("_config") and isinstance(value, dict) else value
        for name, value in config.items()
        if name not in fields
    }


def in_a_line(error: Exception) -> str:
    """What an error of a library says, in one line of sensible length."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without `MACHINE_FIELDS` and `OF_ONE_CALL`, at every depth; with what JSON has not as `NO_NUMBER`.

    Raises `ModelUnknown` for one that names code of its own, at whatever depth, sizes that no model has, or what is no number or probability.
    """
    result = _plain(dict(config), "")
    assert isinstance(result, dict)
    return result


def with_numbers(value: Any) -> Any:
    """The same with every `NO_NUMBER` as the number that it means."""
    if isinstance(value, dict):
        known = _number(value)
        return known if known is not value else {name: with_numbers(inner) for name, inner in value.items()}
    return [with_numbers(inner) for inner in value] if isinstance(value, list) else value


def _number(value: Any) -> Any:
    """The number that a `NO_NUMBER` means; of anything else itself."""
    name = value.get(NO_NUMBER) if isinstance(value, dict) and len(value) == 1 else None
    return NO_NUMBERS.get(name, value) if isinstance(name, str) else value


def _plain(value: Any, path: str) -> Any:
    if isinstance(number := _number(value), float) and not math.isfinite(number):
        if math.isnan(number):
            raise ModelUnknown(f"config.json: {path} is NaN, which is no number")
        return {NO_NUMBER: "Infinity" if number > 0 else "-Infinity"}
    if path.count(".") > MOST_NESTED:
        raise ModelUnknown(f"config.json is nested too deeply at {path[:60]}…")
    if isinstance(value, dict):
        result = {}
        for name, inner in value.items():
            where = f"{path}.{name}".lstrip(".")
            if name == "auto_map":
                raise ModelUnknown(
                    f"this model needs code of its own ({where} in config.json), and foreign code is never run; "
                    "where transformers has a class of its own for this model_type, auto_map can be taken out of the file"
                )
            _check_size(name, inner, where)
            if name not in MACHINE_FIELDS and name not in OF_ONE_CALL and (inner or name != QUANTIZATION):
                result[name] = _plain(inner, where)
        return result
    if isinstance(value, list):
        return [_plain(inner, f"{path}.{index}") for index, inner in enumerate(value)]
    return value


def _check_size(name: str, value: Any, where: str) -> None:
    most = MOST.get(name)
    found = [_number(number) for number in (value if isinstance(value, list) else [value])]
    if PROBABILITY.search(str(name)) and any(isinstance(number, int | float) and not 0 <= number <= 1 for number in found):
        raise ModelUnknown(f"config.json: {where} is {value!r:.40}, and must be a probability from 0 to 1")
    if most is not None and any(isinstance(number, int | float) and not -1 <= number <= most for number in found):
        raise ModelUnknown(f"config.json: {where} is {value!r:.40}; a model has {most:,} at the most")


def image_shape(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Channels, height and width of the images that the model of a config.json takes; of one of text and images, its part for these."""
    seen = _seeing(config)
    height, width = _sides(seen.get("image_size"), 224)
    channels = seen.get("num_channels")
    return (channels if isinstance(channels, int) else 3, height, width)


def image_tokens(config: Mapping[str, Any]) -> int:
    """As how many tokens an image passes through the layers, in models that cut it into patches and keep these; else a number like it."""
    seen = _seeing(config)
    (_, height, width), (high, wide) = image_shape(config), _sides(seen.get("patch_size"), 16)
    registers = seen.get("num_register_tokens")
    special = SPECIAL_TOKENS.get(str(config.get("model_type")), 1) + (registers if isinstance(registers, int) else 0)
    return max(1, height // high) * max(1, width // wide) + special


def _seeing(config: Mapping[str, Any]) -> Mapping[str, Any]:
    part = config.get("vision_config")
    return part if isinstance(part, Mapping) and "image_size" not in config else config


def _sides(value: object, default: int) -> tuple[int, int]:
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(side, int) and side > 0 for side in value):
        return (value[0], value[1])
    side = value if isinstance(value, int) and value > 0 else default
    return (side, side)
