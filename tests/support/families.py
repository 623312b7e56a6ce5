"""Small random models of every family that is supported, built in memory."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedcybgd.shared.models.assembly import Assembled, skeleton
from fedcybgd.shared.models.blocks import own_tensors, partition
from fedcybgd.shared.models.families import base_prefix, canonical

TINY = {"vocab_size": 61, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32}
DECODER = TINY | {"num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def make(config: str, model: str, **sizes: Any) -> Callable[[int], Any]:
    layers = next((key for key in ("n_layer", "n_layers") if key in sizes), "num_hidden_layers")

    def of_length(number: int) -> Any:
        import transformers

        torch.manual_seed(0)
        settings = getattr(transformers, config)(**sizes | {layers: number})
        return getattr(transformers, model)(settings).eval()

    return of_length


GPT2 = {"vocab_size": 61, "n_embd": 16, "n_head": 2, "n_positions": 32, "n_layer": 2, "bos_token_id": 1, "eos_token_id": 2}
OPT = {
    "vocab_size": 61, "hidden_size": 16, "ffn_dim": 24, "num_attention_heads": 2, "max_position_embeddings": 32, "word_embed_proj_dim": 16,
}  # fmt: skip
DISTIL = {"vocab_size": 61, "dim": 16, "hidden_dim": 24, "n_heads": 2, "max_position_embeddings": 32, "n_layers": 2, "num_labels": 3}

# Several heads, and fewer key-value groups than heads: the wider shapes that pruning is tested on.
WIDE = TINY | {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 40}
GEMMA = WIDE | {"head_dim": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = WIDE | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
VIT = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40, "image_size": 8, "patch_size": 4, "num_labels": 3}

FAMILIES: dict[str, tuple[str, Callable[[int], Any]]] = {
    "bert": ("text-classification", make("BertConfig", "BertForSequenceClassification", **TINY, num_labels=3)),
    "roberta": ("text-classification", make("RobertaConfig", "RobertaForSequenceClassification", **TINY, num_labels=3)),
    "distilbert": ("text-classification", make("DistilBertConfig", "DistilBertForSequenceClassification", **DISTIL)),
    "gpt2": ("causal-lm", make("GPT2Config", "GPT2LMHeadModel", **GPT2)),
    "gpt2-classifier": ("text-classification", make("GPT2Config", "GPT2ForSequenceClassification", **GPT2, num_labels=3, pad_token_id=0)),
    "opt": ("causal-lm", make("OPTConfig", "OPTForCausalLM", **OPT)),
    "opt-projected": ("causal-lm", make("OPTConfig", "OPTForCausalLM", **OPT | {"word_embed_proj_dim": 8, "do_layer_norm_before": False})),
    "bloom": ("causal-lm", make("BloomConfig", "BloomForCausalLM", vocab_size=61, hidden_size=16, n_head=2, n_layer=2)),
    "llama-tied": ("causal-lm", make("LlamaConfig", "LlamaForCausalLM", **DECODER, tie_word_embeddings=True)),
    "llama-untied": ("causal-lm", make("LlamaConfig", "LlamaForCausalLM", **DECODER, tie_word_embeddings=False)),
    "llama-classifier": ("text-classification", make("LlamaConfig", "LlamaForSequenceClassification", **DECODER, num_labels=3)),
    "mistral": ("causal-lm", make("MistralConfig", "MistralForCausalLM", **DECODER, tie_word_embeddings=False)),
    "qwen2": ("causal-lm", make("Qwen2Config", "Qwen2ForCausalLM", **DECODER, tie_word_embeddings=True)),
    "qwen3": ("causal-lm", make("Qwen3Config", "Qwen3ForCausalLM", **GEMMA, tie_word_embeddings=True)),
    "gemma": ("causal-lm", make("GemmaConfig", "GemmaForCausalLM", **GEMMA)),
    "gemma2": ("causal-lm", make("Gemma2Config", "Gemma2ForCausalLM", **GEMMA, sliding_window=4)),
    "gemma3": ("causal-lm", make("Gemma3TextConfig", "Gemma3ForCausalLM", **GEMMA, sliding_window=4)),
    "phi": ("causal-lm", make("PhiConfig", "PhiForCausalLM", **GROUPED)),
    "phi3": ("causal-lm", make("Phi3Config", "Phi3ForCausalLM", **GROUPED)),
    "glm": ("causal-lm", make("GlmConfig", "GlmForCausalLM", **GEMMA)),
    "glm4": ("causal-lm", make("Glm4Config", "Glm4ForCausalLM", **GEMMA)),
}
"""name → (task, function from a number of layers to a model in eval mode)"""

ENCODER = TINY | {"num_labels": 3}
RELATIVE = ENCODER | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
SPM = RELATIVE | {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True}
MODERN = ENCODER | {"bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0, "local_attention": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
GEMMA_4 = GEMMA | {"vocab_size_per_layer_input": 100, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "sliding_window": 4}
XLNET = {"vocab_size": 61, "d_model": 16, "n_head": 2, "d_inner": 24, "n_layer": 2, "num_labels": 3}
LONGFORMER = ENCODER | {"attention_window": 4}

MORE_FAMILIES: dict[str, tuple[str, Callable[[int], Any]]] = {
    "xlm-roberta": ("text-classification", make("XLMRobertaConfig", "XLMRobertaForSequenceClassification", **ENCODER)),
    "camembert": ("text-classification", make("CamembertConfig", "CamembertForSequenceClassification", **ENCODER)),
    "electra": ("text-classification", make("ElectraConfig", "ElectraForSequenceClassification", **ENCODER, embedding_size=12)),
    "mpnet": ("text-classification", make("MPNetConfig", "MPNetForSequenceClassification", **ENCODER)),
    "deberta": ("text-classification", make("DebertaConfig", "DebertaForSequenceClassification", **RELATIVE, max_relative_positions=8)),
    "deberta-v2": ("text-classification", make("DebertaV2Config", "DebertaV2ForSequenceClassification", **SPM, conv_kernel_size=3)),
    "deberta-v3": ("text-classification", make("DebertaV2Config", "DebertaV2ForSequenceClassification", **SPM)),
    "albert": ("text-classification", make("AlbertConfig", "AlbertForSequenceClassification", **ENCODER, embedding_size=12)),
    "albert-groups": (
        "text-classification",
        make("AlbertConfig", "AlbertForSequenceClassification", **ENCODER, embedding_size=12, num_hidden_groups=2),
    ),
    "modernbert": ("text-classification", make("ModernBertConfig", "ModernBertForSequenceClassification", **MODERN)),
    "xlnet": ("text-classification", make("XLNetConfig", "XLNetForSequenceClassification", **XLNET)),
    "longformer": ("text-classification", make("LongformerConfig", "LongformerForSequenceClassification", **LONGFORMER)),
    "ibert": ("text-classification", make("IBertConfig", "IBertForSequenceClassification", **ENCODER)),
    "gpt-neox": ("causal-lm", make("GPTNeoXConfig", "GPTNeoXForCausalLM", **TINY)),
    "smollm3": ("causal-lm", make("SmolLM3Config", "SmolLM3ForCausalLM", **DECODER)),
    "qwen3-classifier": ("text-classification", make("Qwen3Config", "Qwen3ForSequenceClassification", **GEMMA, num_labels=3)),
    "gemma4": ("causal-lm", make("Gemma4TextConfig", "Gemma4ForCausalLM", **GEMMA_4)),
    "mixtral": ("causal-lm", make("MixtralConfig", "MixtralForCausalLM", **DECODER, num_local_experts=4)),
    "qwen2-moe": (
        "causal-lm",
        make("Qwen2MoeConfig", "Qwen2MoeForCausalLM", **DECODER, **EXPERTS, shared_expert_intermediate_size=8, mlp_only_layers=[0]),
    ),
    "qwen3-moe": ("causal-lm", make("Qwen3MoeConfig", "Qwen3MoeForCausalLM", **GEMMA, **EXPERTS, mlp_only_layers=[1])),
}
"""Families whose layers are not alike, run twice, share tables, or hold experts, and those that differ little from one above."""
TEXT = FAMILIES | MORE_FAMILIES


def staged(config: str, model: str, widths: str, **sizes: Any) -> Callable[[int], Any]:
    """A model whose layers are stages, each half as high and twice as wide as the one before."""

    def of_length(number: int) -> Any:
        import transformers

        torch.manual_seed(0)
        wide = {"hidden_sizes": [8 << stage for stage in range(number)], "num_stages": number} if widths == "hidden_sizes" else {}
        several = {"num_heads": [2] * number} if widths == "num_heads" else {}
        settings = getattr(transformers, config)(**sizes | wide | several, depths=[1] * number)
        return getattr(transformers, model)(settings).eval()

    return of_length


STAGED = {"image_size": 32, "num_labels": 3}
SWIN = STAGED | {"patch_size": 2, "embed_dim": 8, "window_size": 2}
IMAGES: dict[str, tuple[str, Callable[[int], Any]]] = {
    "vit": ("image-classification", make("ViTConfig", "ViTForImageClassification", **VIT)),
    "deit": ("image-classification", make("DeiTConfig", "DeiTForImageClassification", **VIT)),
    "beit": ("image-classification", make("BeitConfig", "BeitForImageClassification", **VIT, use_relative_position_bias=True)),
    "data2vec-vision": ("image-classification", make("Data2VecVisionConfig", "Data2VecVisionForImageClassification", **VIT)),
    "dinov2": ("image-classification", make("Dinov2Config", "Dinov2ForImageClassification", **VIT)),
    "dinov2-registers": (
        "image-classification",
        make("Dinov2WithRegistersConfig", "Dinov2WithRegistersForImageClassification", **VIT, num_register_tokens=2),
    ),
    "swin": ("image-classification", staged("SwinConfig", "SwinForImageClassification", "num_heads", **SWIN)),
    "convnext": ("image-classification", staged("ConvNextConfig", "ConvNextForImageClassification", "hidden_sizes", **STAGED)),
}
SUPPORTED = TEXT | IMAGES
QUESTIONS: dict[str, tuple[str, Callable[[int], Any]]] = {
    "bert-questions": ("extractive-qa", make("BertConfig", "BertForQuestionAnswering", **TINY)),
    "roberta-questions": ("extractive-qa", make("RobertaConfig", "RobertaForQuestionAnswering", **TINY)),
    "distilbert-questions": ("extractive-qa", make("DistilBertConfig", "DistilBertForQuestionAnswering", **DISTIL | {"num_labels": 2})),
    "gpt2-questions": ("extractive-qa", make("GPT2Config", "GPT2ForQuestionAnswering", **GPT2)),
}
"""Some of the families above, which point at answers."""

EVERY_FAMILY = FAMILIES | {"vit": IMAGES["vit"]}
"""Those of which what is said of their structure is tried out one by one."""


def config_of(model: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return values | {"architectures": [type(model).__name__]}


def randomised(model: Any) -> Any:
    """All parameters different from what initialisation makes: zeros and ones would hide a tensor that was not put in."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def tensors_by_block(model: Any, per_block: int = 1) -> dict[str, dict[str, Tensor]]:
    """Copies of a model's tensors by canonical name, by block."""
    prefix = base_prefix(model)
    tensors = {canonical(name, prefix): tensor.detach().clone() for name, tensor in own_tensors(model).items()}
    return {block.name: {t.name: tensors[t.name] for t in block.tensors} for block in partition(model, per_block)}


def empty(family: str, model: Any) -> Any:
    """The skeleton of `model`."""
    return skeleton(config_of(model), EVERY_FAMILY[family][0])  # type: ignore[arg-type]


def assembled_of(family: str, model: Any, blocks: Mapping[str, Mapping[str, Tensor]] | None = None) -> Assembled:
    """`model` in its skeleton, from its own blocks or those given."""
    assembled = Assembled(empty(family, model))
    for tensors in (blocks or tensors_by_block(model)).values():
        assembled.put(tensors)
    assembled.check_complete()
    return assembled


def inputs_of(model: nn.Module) -> dict[str, Tensor]:
    """A batch of two rows of different length, or two images."""
    if "pixel_values" in getattr(model, "main_input_name", ""):
        side = model.config.image_size
        return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * side * side).reshape(2, 3, side, side)}
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [10, 9, 8, 7, 0, 0]])
    return {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])}


def logits_of(model: nn.Module) -> Tensor:
    """Logits of `inputs_of`, those of padding left out."""
    batch = inputs_of(model)
    caches = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    logits: Tensor = model(**batch, **caches).logits
    return logits[batch["attention_mask"].bool()] if logits.ndim == 3 else logits


def loss_of(model: nn.Module) -> Tensor:
    """Mean cross entropy against fixed, arbitrary labels."""
    logits = logits_of(model).float()
    return nn.functional.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[-1])
