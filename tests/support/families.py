"""Small random models of every family that is supported, built in memory."""

from collections.abc import Callable
from typing import Any

TINY = {"vocab_size": 61, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32}
DECODER = TINY | {"num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _make(config: str, model: str, **sizes: Any) -> Callable[[int], Any]:
    layers = next((key for key in ("n_layer", "n_layers") if key in sizes), "num_hidden_layers")

    def make(number: int) -> Any:
        import torch
        import transformers

        torch.manual_seed(0)
        settings = getattr(transformers, config)(**sizes | {layers: number})
        return getattr(transformers, model)(settings).eval()

    return make


GPT2 = {"vocab_size": 61, "n_embd": 16, "n_head": 2, "n_positions": 32, "n_layer": 2, "bos_token_id": 1, "eos_token_id": 2}
OPT = {
    "vocab_size": 61, "hidden_size": 16, "ffn_dim": 24, "num_attention_heads": 2, "max_position_embeddings": 32, "word_embed_proj_dim": 16,
}  # fmt: skip
DISTIL = {"vocab_size": 61, "dim": 16, "hidden_dim": 24, "n_heads": 2, "max_position_embeddings": 32, "n_layers": 2, "num_labels": 3}

FAMILIES: dict[str, tuple[str, Callable[[int], Any]]] = {
    "bert": ("text-classification", _make("BertConfig", "BertForSequenceClassification", **TINY, num_labels=3)),
    "roberta": ("text-classification", _make("RobertaConfig", "RobertaForSequenceClassification", **TINY, num_labels=3)),
    "distilbert": ("text-classification", _make("DistilBertConfig", "DistilBertForSequenceClassification", **DISTIL)),
    "gpt2": ("causal-lm", _make("GPT2Config", "GPT2LMHeadModel", **GPT2)),
    "gpt2-classifier": ("text-classification", _make("GPT2Config", "GPT2ForSequenceClassification", **GPT2, num_labels=3, pad_token_id=0)),
    "opt": ("causal-lm", _make("OPTConfig", "OPTForCausalLM", **OPT)),
    "opt-projected": ("causal-lm", _make("OPTConfig", "OPTForCausalLM", **OPT | {"word_embed_proj_dim": 8, "do_layer_norm_before": False})),
    "bloom": ("causal-lm", _make("BloomConfig", "BloomForCausalLM", vocab_size=61, hidden_size=16, n_head=2, n_layer=2)),
    "llama-tied": ("causal-lm", _make("LlamaConfig", "LlamaForCausalLM", **DECODER, tie_word_embeddings=True)),
    "llama-untied": ("causal-lm", _make("LlamaConfig", "LlamaForCausalLM", **DECODER, tie_word_embeddings=False)),
    "llama-classifier": ("text-classification", _make("LlamaConfig", "LlamaForSequenceClassification", **DECODER, num_labels=3)),
    "mistral": ("causal-lm", _make("MistralConfig", "MistralForCausalLM", **DECODER, tie_word_embeddings=False)),
    "qwen2": ("causal-lm", _make("Qwen2Config", "Qwen2ForCausalLM", **DECODER, tie_word_embeddings=True)),
}
"""name → (task, function from a number of layers to a model in eval mode)"""
