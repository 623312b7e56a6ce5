"""The model of a busy coordinator, by its shapes: a Llama of 70 billion parameters, of which no byte exists; and names for what there is."""

from fedcybgd.shared.contract.digests import digest_of

HIDDEN, INNER, VOCABULARY = 8192, 28672, 128256


def fake(*parts: object) -> str:
    """A digest that no blob has."""
    return digest_of("/".join(map(str, parts)).encode())


def identifier(prefix: str, *parts: object) -> str:
    return f"{prefix}_{fake(prefix, *parts)[:16]}"


def agent_id(number: int) -> str:
    return identifier("agt", number)


def shapes(blocks: int) -> dict[str, tuple[str, dict[str, list[int]]]]:
    """Block → kind and tensors, of a Llama with so many blocks."""
    layer = {
        "input_layernorm": [HIDDEN], "self_attn.q_proj": [HIDDEN, HIDDEN], "self_attn.k_proj": [1024, HIDDEN], "self_attn.v_proj": [1024, HIDDEN],
        "self_attn.o_proj": [HIDDEN, HIDDEN], "post_attention_layernorm": [HIDDEN], "mlp.gate_proj": [INNER, HIDDEN],
        "mlp.up_proj": [INNER, HIDDEN], "mlp.down_proj": [HIDDEN, INNER],
    }  # fmt: skip
    layers = {
        f"layers.{i}": ("layer", {f"base.layers.{i}.{name}.weight": shape for name, shape in layer.items()}) for i in range(blocks - 3)
    }
    table = {"base.embed_tokens.weight": [VOCABULARY, HIDDEN]}
    head = {"lm_head.weight": [VOCABULARY, HIDDEN]}
    return {"embeddings": ("embeddings", table), **layers, "norm": ("norm", {"base.norm.weight": [HIDDEN]}), "head": ("head", head)}


def numel(tensors: dict[str, list[int]]) -> int:
    return sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in tensors.values())
