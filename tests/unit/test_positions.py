"""The longest row that a model takes is known before it meets one."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from fedcybgd.shared.models.positions import usable_positions

SMALL = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 24, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "bert": {},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24},
    "roberta": {},
    "xlm-roberta": {"pad_token_id": 0},
    "camembert": {"pad_token_id": 5},
    "mpnet": {},
    "longformer": {"attention_window": [4]},
    "ibert": {},
    "data2vec-text": {},
    "esm": {"position_embedding_type": "absolute"},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24},
    "gpt_neo": {"num_layers": 1, "attention_types": [[["global"], 1]], "num_heads": 2},
    "openai-gpt": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "biogpt": {},
    "gptj": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24, "rotary_dim": 4},
}


def model(kind: str, **more: Any) -> nn.Module:
    made: nn.Module = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **SMALL | MODELS.get(kind, {}) | more))
    return made.eval()


def takes(made: nn.Module, tokens: int) -> bool:
    try:
        with torch.no_grad():
            made(input_ids=torch.full((1, tokens), 7), attention_mask=torch.ones(1, tokens, dtype=torch.int64))
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("kind", MODELS)
def test_a_row_of_that_length_passes_and_one_token_more_does_not(kind: str) -> None:
    made = model(kind)
    limit = usable_positions(made)
    assert limit is not None
    assert 16 < limit <= 24
    assert takes(made, limit)
    assert not takes(made, limit + 1)


@pytest.mark.parametrize(
    ("kind", "more"), [("llama", {"num_key_value_heads": 1}), ("gpt_neox", {}), ("modernbert", {"cls_token_id": 0, "sep_token_id": 2})]
)
def test_a_model_whose_positions_are_turned_has_the_length_it_was_made_for(kind: str, more: dict[str, Any]) -> None:
    assert usable_positions(model(kind, **more)) == 24


def test_a_model_without_positions_takes_any_length() -> None:
    small = {"vocab_size": 40, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 24}
    made = transformers.AutoModel.from_config(transformers.AutoConfig.for_model("xlnet", **small))
    assert usable_positions(made) is None
