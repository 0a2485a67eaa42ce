"""The decoder's parameters: what their axes are, and what checkpoint files call them.

A parameter is named by its path, as in `layers/attention/query`. Those under `layers/` hold all L
layers, stacked on a leading axis; checkpoint files hold one tensor per layer.
"""

from jaxalign.models.config import ModelConfig

# Path: axes, tensor in Hugging Face's files, tensor in GGUF files (which have no score head).
_PARAMETERS = {
    "embed/embedding": ("vocab embed", "model.embed_tokens.weight", "token_embd.weight"),
    "layers/attention_norm/scale": ("embed", "input_layernorm.weight", "attn_norm.weight"),
    "layers/attention/query": ("heads embed", "self_attn.q_proj.weight", "attn_q.weight"),
    "layers/attention/key": ("kv_heads embed", "self_attn.k_proj.weight", "attn_k.weight"),
    "layers/attention/value": ("kv_heads embed", "self_attn.v_proj.weight", "attn_v.weight"),
    "layers/attention/output": ("embed heads", "self_attn.o_proj.weight", "attn_output.weight"),
    "layers/mlp_norm/scale": ("embed", "post_attention_layernorm.weight", "ffn_norm.weight"),
    "layers/mlp/gate": ("mlp embed", "mlp.gate_proj.weight", "ffn_gate.weight"),
    "layers/mlp/up": ("mlp embed", "mlp.up_proj.weight", "ffn_up.weight"),
    "layers/mlp/down": ("embed mlp", "mlp.down_proj.weight", "ffn_down.weight"),
    "final_norm/scale": ("embed", "model.norm.weight", "output_norm.weight"),
    "layers/attention/query_bias": ("heads", "self_attn.q_proj.bias", "attn_q.bias"),
    "layers/attention/key_bias": ("kv_heads", "self_attn.k_proj.bias", "attn_k.bias"),
    "layers/attention/value_bias": ("kv_heads", "self_attn.v_proj.bias", "attn_v.bias"),
    "layers/attention/query_norm/scale": ("head", "self_attn.q_norm.weight", "attn_q_norm.weight"),
    "layers/attention/key_norm/scale": ("head", "self_attn.k_norm.weight", "attn_k_norm.weight"),
    "lm_head/kernel": ("vocab embed", "lm_head.weight", "output.weight"),
    "score/kernel": ("label embed", "score.weight", ""),
}


def _names(column: int, layer: str) -> dict[str, str]:
    return {
        path: layer * path.startswith("layers/") + row[column] for path, row in _PARAMETERS.items()
    }


HUGGING_FACE = _names(1, "model.layers.{}.")
"""Path to the tensor's name, with `{}` for the layer's number."""

GGUF = _names(2, "blk.{}.")
"""The same in GGUF files."""


def leaf_axes(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Path of every parameter that a model has, to the logical name of each axis."""
    absent = {
        "bias": not config.qkv_bias,
        "query_norm/scale": not config.qk_norm,
        "key_norm/scale": not config.qk_norm,
        "lm_head/kernel": config.tie_embeddings or config.num_labels > 0,
        "score/kernel": not config.num_labels,
    }
    without = tuple(ending for ending, is_absent in absent.items() if is_absent)
    return {
        path: ("layers",) * path.startswith("layers/") + tuple(axes.split())
        for path, (axes, _, _) in _PARAMETERS.items()
        if not path.endswith(without)
    }


def leaf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path of every parameter that a model has, to its shape."""
    sizes = {
        "layers": config.num_layers,
        "vocab": config.vocab_size,
        "embed": config.model_dim,
        "heads": config.num_heads * config.head_dim,
        "kv_heads": config.num_kv_heads * config.head_dim,
        "head": config.head_dim,
        "mlp": config.mlp_dim,
        "label": config.num_labels,
    }
    return {path: tuple(sizes[axis] for axis in axes) for path, axes in leaf_axes(config).items()}
