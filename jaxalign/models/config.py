"""The architecture of a decoder as one frozen, hashable value."""

import dataclasses

from jaxalign.models.rotary import RopeScaling


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a decoder with grouped-query attention, SwiGLU and RMSNorm.

    Llama, Mistral and SmolLM2 are the plain form; Qwen2.5 has `qkv_bias`, Qwen3 `qk_norm`.

    Hashable, hence usable as a static argument of `jax.jit`.

    Attributes:
      vocab_size: V, rows of the token embedding.
      num_layers: L, stacked and scanned.
      model_dim: D, width of the residual stream.
      num_heads: H, query heads.
      num_kv_heads: K, key and value heads; divides `num_heads`.
      head_dim: d, width of one head.
      mlp_dim: F, width of the gated MLP.
      rope_theta: base of the rotary frequencies.
      rope_scaling: how they are stretched to a longer context, or None.
      qkv_bias: whether queries, keys and values have a bias.
      qk_norm: whether each query and key head is normalised before it is rotated.
      norm_eps: added to the mean square inside RMSNorm.
      tie_embeddings: whether the output projection is the embedding table.
      num_labels: scores of a sequence, for a reward model or classifier; 0 for a language model.
      max_positions: the context length the weights were trained for, in tokens.
      bos_token_id: start token of the original model, or None.
      eos_token_id: end token of the original model.
      stop_token_ids: tokens that end a text beside it, such as Llama 3's end of a turn.
      pad_token_id: padding token recorded on export; masks are never derived from it.
    """

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    num_labels: int = 0
    max_positions: int = 8192
    bos_token_id: int | None = None
    eos_token_id: int = 2
    stop_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.qkv_bias and self.qk_norm:
            raise ValueError("qkv_bias and qk_norm together are no architecture that is supported")
        if self.rope_theta <= 1:
            raise ValueError(f"rope_theta={self.rope_theta} must be above 1")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for rotary embeddings")
