"""The decoder: RMSNorm, rotary grouped-query attention, SwiGLU; layers stacked and scanned.

Every matrix is kept `[out, in]` and contracted over its last axis, the layout that the matrix units
of CPUs and accelerators read directly, and the one of Hugging Face's files.
"""

from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from jaxalign.models.attention import KeyValues, attend
from jaxalign.models.config import ModelConfig
from jaxalign.models.fused_attention import AttentionPath, attend_fused
from jaxalign.models.lora import Lora
from jaxalign.models.products import SAVED, project
from jaxalign.models.quantised import Weight, is_quantised
from jaxalign.models.rotary import rotary_frequencies, rotary_tables, rotate
from jaxalign.models.sharding import constrain

Remat = Literal["none", "dots", "full"]

_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(SAVED),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}

_MATRIX = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=-1, out_axis=-2)


def times(x: jax.Array, weight: Weight) -> jax.Array:
    """x·Wᵀ for `x` `[..., in]` and `weight` `[out, in]`, computed in the dtype of `x`."""
    if isinstance(weight, dict):  # rounded once, after the scale
        narrow = weight["int8"].astype(x.dtype)
        last = (((x.ndim - 1,), (1,)), ((), ()))
        wide = jax.lax.dot_general(x, narrow, last, preferred_element_type=jnp.float32)
        return (wide * weight["scale"]).astype(x.dtype)
    return project(x, weight.astype(x.dtype))


def product(
    module: nn.Module, name: str, x: jax.Array, shape: tuple[int, int], lora: Lora
) -> jax.Array:
    """x·Wᵀ by the module's matrix of that name, and what an adapter of it adds, if it has one."""
    given: Any = module.get_variable("params", name)
    if is_quantised(given):
        out = times(x, given)
    else:
        out = times(x, module.param(name, _MATRIX, shape))
    if not module.has_variable("adapter", name):
        return out
    adapter: dict[str, jax.Array] = module.get_variable("adapter", name)
    if adapter["a"].shape[0] != lora.rank:
        raise ValueError(
            f"an adapter of rank {adapter['a'].shape[0]}, and the model's lora has {lora.rank}: "
            "run it with model.clone(lora=…), what the adapter was made with"
        )
    return out + times(times(x, adapter["a"]) * lora.scale, adapter["b"])


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """`x` `[..., D]` plus `bias` `[D]`, in `x`'s dtype; the bias's gradient is summed in its own.

    Repeating comes before rounding, so backwards a cotangent is widened before it is summed. Ours.
    """
    return x + jnp.broadcast_to(bias, x.shape).astype(x.dtype)


class RMSNorm(nn.Module):
    """x / √(mean x² + ε) · scale, in float32; `[..., D]` → `[..., D]`, dtype kept."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # noqa: D102
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * inverse * scale.astype(jnp.float32)).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions over the block and its contexts."""

    config: ModelConfig
    mesh: Mesh | None = None
    path: AttentionPath = "blocks"
    lora: Lora = Lora()

    @nn.compact
    def __call__(  # noqa: D102
        self,
        x: jax.Array,
        rotary: tuple[jax.Array, jax.Array],
        mask: jax.Array,
        contexts: tuple[KeyValues, ...],
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        config = self.config
        batch, length, width = x.shape
        q_width = config.num_heads * config.head_dim
        kv_width = config.num_kv_heads * config.head_dim

        def heads(name: str, size: int) -> jax.Array:
            out = product(self, name, x, (size, width), self.lora)
            if config.qkv_bias:
                bias = self.param(f"{name}_bias", nn.initializers.zeros, out.shape[-1:])
                out = add_bias(out, bias)
            return out.reshape(batch, length, -1, config.head_dim)

        query = heads("query", q_width)
        keys = heads("key", kv_width)
        values = heads("value", kv_width).transpose(0, 2, 1, 3)
        if config.qk_norm:
            query = RMSNorm(config.norm_eps, name="query_norm")(query)
            keys = RMSNorm(config.norm_eps, name="key_norm")(keys)
        query = constrain(rotate(query, rotary), self.mesh, "batch", "length", "heads", None)
        keys = rotate(keys, rotary).transpose(0, 2, 1, 3)
        keys = constrain(keys, self.mesh, "batch", "kv_heads", "length", None)
        values = constrain(values, self.mesh, "batch", "kv_heads", "length", None)
        fused = self.path == "cudnn" and length > 1 and x.dtype != jnp.float32
        out = (attend_fused if fused else attend)(query, keys, values, mask, contexts)
        out = out.reshape(batch, length, q_width)
        return product(self, "output", out, (width, q_width), self.lora), (keys, values)


class MLP(nn.Module):
    """SwiGLU: W_down (silu(W_gate x) ⊙ W_up x)."""

    config: ModelConfig
    mesh: Mesh | None = None
    lora: Lora = Lora()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # noqa: D102
        width, hidden = x.shape[-1], self.config.mlp_dim
        gate = product(self, "gate", x, (hidden, width), self.lora)
        up = product(self, "up", x, (hidden, width), self.lora)
        inner = constrain(nn.silu(gate) * up, self.mesh, "batch", "length", "mlp")
        return product(self, "down", inner, (width, hidden), self.lora)


class Table(nn.Module):
    """One `[rows, width]` parameter: the embedding, the output projection, or a score head."""

    entry: str
    rows: int
    width: int

    @nn.compact
    def __call__(self) -> jax.Array:  # noqa: D102
        return self.param(self.entry, nn.initializers.normal(0.02), (self.rows, self.width))


class Layer(nn.Module):
    """One pre-norm residual layer; also returns the keys and values it made."""

    config: ModelConfig
    mesh: Mesh | None = None
    path: AttentionPath = "blocks"
    lora: Lora = Lora()

    @nn.compact
    def __call__(  # noqa: D102
        self,
        x: jax.Array,
        contexts: tuple[KeyValues, ...],
        rotary: tuple[jax.Array, jax.Array],
        mask: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        normed = RMSNorm(self.config.norm_eps, name="attention_norm")(x)
        attention = Attention(self.config, self.mesh, self.path, self.lora, name="attention")
        attended, keys_values = attention(normed, rotary, mask, contexts)
        x = x + attended
        normed = RMSNorm(self.config.norm_eps, name="mlp_norm")(x)
        x = x + MLP(self.config, self.mesh, self.lora, name="mlp")(normed)
        return constrain(x, self.mesh, "batch", "length", None), keys_values


class Network(nn.Module):
    """The layers of a Llama-family decoder; `jaxalign.models.Transformer` samples and scores by it.

    `model.apply({"params": params}, tokens, positions, mask, contexts)` runs a block of new tokens
    on top of zero or more context blocks and returns its last hidden states and its own keys and
    values, which serve as a context of the next block.

    Attributes:
      config: the architecture.
      dtype: compute dtype; parameters keep theirs (float32 in training).
      remat: what the backward pass recomputes inside a layer: "none" keeps all activations, "dots"
        keeps the products with weights, "full" keeps only the layer's input.
      mesh: devices that share the work, with the axes `jaxalign.models.sharding.AXES`; None for the
        one that the parameters are on.
      attention: "blocks", which runs everywhere and never repeats a context; "cudnn", one kernel
        for blocks of more than one token, on NVIDIA GPUs (`jaxalign.models.fused_attention`). It
        knows no float32, which takes "blocks".
      lora: adapters, which `apply` takes as a second collection, "adapter"; rank 0 for none.
    """

    config: ModelConfig
    dtype: Any = jnp.bfloat16
    remat: Remat = "none"
    mesh: Mesh | None = None
    attention: AttentionPath = "blocks"
    lora: Lora = Lora()

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        contexts: tuple[KeyValues, ...] = (),
    ) -> tuple[jax.Array, KeyValues]:
        """Runs a block.

        Args:
          tokens: `[B, T]` int32.
          positions: `[B, T]` int32 absolute positions for the rotary embedding.
          mask: `[B, T]` bool, which positions exist; the others are attended by none. Or int32,
            the document of each, 0 for none: documents of a row do not see each other.
          contexts: earlier blocks, leading size dividing B.

        Returns:
          hidden states after the final norm `[B, T, D]` (compute dtype), and the block's keys and
          values `[L, B, K, T, d]`.
        """
        chex.assert_rank([tokens, positions, mask], 2)
        chex.assert_equal_shape([tokens, positions, mask])
        config = self.config
        table = Table("embedding", config.vocab_size, config.model_dim, name="embed")()
        if self.is_initializing():  # heads are read by those who need them: heads.py, scores.py
            if config.num_labels:
                Table("kernel", config.num_labels, config.model_dim, name="score")()
            elif not config.tie_embeddings:
                Table("kernel", config.vocab_size, config.model_dim, name="lm_head")()
        x = jnp.take(table, tokens, axis=0).astype(self.dtype)
        x = constrain(x, self.mesh, "batch", "length", None)
        layer = Layer
        if self.remat != "none":
            layer = nn.remat(Layer, policy=_REMAT_POLICIES[self.remat], prevent_cse=False)
        axes: Any = (0, 0, nn.broadcast)  # a context's keys and values have a layer's each
        layers = nn.scan(
            layer,
            variable_axes={"params": 0, "adapter": 0},
            split_rngs={"params": True},
            in_axes=((KeyValues(*axes),) * len(contexts), nn.broadcast, nn.broadcast),
            length=config.num_layers,
        )(config, self.mesh, self.attention, self.lora, name="layers")
        scaling = config.rope_scaling
        frequencies = rotary_frequencies(config.head_dim, config.rope_theta, scaling)
        x, (keys, values) = layers(
            x,
            contexts,
            rotary_tables(positions, frequencies, scaling.attention_factor if scaling else 1.0),
            mask,
        )
        x = RMSNorm(config.norm_eps, name="final_norm")(x)
        return x, KeyValues(keys, values, mask != 0)
