"""A base in 8 bits: what it rounds to, what runs on it, and where it lies."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.sharding import AbstractMesh
from tiny_model import SMALL, random_params

from jaxalign.models.completion import compute_params
from jaxalign.models.layout import parameter_shardings, tree_shardings
from jaxalign.models.lora import Lora, init_adapter, merge, on_base
from jaxalign.models.network import times
from jaxalign.models.quantised import dequantise, is_quantised, quantise
from jaxalign.models.sharding import AXES
from jaxalign.models.transformer import Transformer
from jaxalign.sampling import Temperature, sample

LORA = Lora(rank=3, alpha=6.0, base="int8")
MODEL = Transformer(SMALL, dtype=jnp.float32, lora=LORA)
RNG = np.random.default_rng(0)
PROMPTS = RNG.integers(1, SMALL.vocab_size, (2, 4)).astype(np.int32)
TOKENS = RNG.integers(1, SMALL.vocab_size, (4, 5)).astype(np.int32)


def in_layers(weight):
    return {"layers": {"mlp": {"up": weight}}}


def adapter():
    new = init_adapter(SMALL, LORA, jax.random.key(0))
    return jax.tree.map(lambda x: x + 0.2 * RNG.normal(size=x.shape).astype(np.float32), new)


def logps(model, params):
    there = jnp.ones(PROMPTS.shape, bool), jnp.ones(TOKENS.shape, bool)
    return jax.jit(model.logps)(params, PROMPTS, there[0], TOKENS, there[1])


def test_a_matrix_by_hand():
    """Rows of 254 and 1.27 at most: steps of 2 and of 0.01."""
    weight = jnp.array([[[254.0, -254.0, 3.1], [1.27, 0.006, -0.5]]])
    up = quantise(in_layers(weight))["layers"]["mlp"]["up"]
    np.testing.assert_array_equal(up["int8"], [[[127, -127, 2], [127, 1, -50]]])
    np.testing.assert_allclose(up["scale"], [[2.0, 0.01]], rtol=1e-6)
    layer = {"int8": up["int8"][0], "scale": up["scale"][0]}
    np.testing.assert_allclose(times(jnp.array([1.0, 0.0, 1.0]), layer), [258.0, 0.77], rtol=1e-6)


@given(arrays(np.float32, (1, 3, 4), elements=st.floats(-(2.0**60), 2.0**60, width=32)))
@settings(deadline=None, max_examples=50)
def test_no_weight_is_off_by_more_than_half_a_step(weight):
    back = dequantise(quantise(in_layers(jnp.asarray(weight))))["layers"]["mlp"]["up"]
    step = np.abs(weight).max(axis=-1, keepdims=True) / 127
    assert (np.abs(back - weight) <= 0.5001 * step + 1e-35).all()


def test_what_is_in_8_bits():
    """The layers' matrices alone; casting leaves them as they are."""
    params = random_params(SMALL)
    small = quantise(params)
    flat = compute_params(small, jnp.bfloat16)
    assert flat["embed"]["embedding"].dtype == jnp.bfloat16
    for group in ("attention", "mlp"):
        for name, weight in small["layers"][group].items():
            assert is_quantised(weight) == (params["layers"][group][name].ndim == 3), name
            if is_quantised(weight):
                assert flat["layers"][group][name]["int8"].dtype == jnp.int8
                assert flat["layers"][group][name]["scale"].dtype == jnp.float32
    np.testing.assert_array_equal(
        flat["layers"]["mlp_norm"]["scale"], params["layers"]["mlp_norm"]["scale"]
    )
    up = flat["layers"]["mlp"]["up"]
    assert sum(x.nbytes for x in up.values()) < 0.7 * up["int8"].size * 2


def test_an_adapter_on_it_is_one_on_what_it_stands_for():
    """With the dequantised base, and merged with it, the same log-probabilities."""
    base, added = quantise(random_params(SMALL)), adapter()
    found = logps(MODEL, on_base(added, base))
    np.testing.assert_allclose(found, logps(MODEL, on_base(added, dequantise(base))), atol=1e-5)
    merged = merge(on_base(added, base), LORA)
    np.testing.assert_allclose(found, logps(Transformer(SMALL, jnp.float32), merged), atol=2e-5)


def test_sampled_and_trained_log_probabilities_are_the_same():
    params = on_base(adapter(), quantise(random_params(SMALL)))
    rollout = sample(
        MODEL,
        params,
        jnp.asarray(PROMPTS),
        jnp.ones(PROMPTS.shape, bool),
        jax.random.key(3),
        samples_per_prompt=2,
        max_new_tokens=5,
        method=Temperature(1.0),
        stop=(-1,),
    )
    again = jax.jit(MODEL.logps)(
        params, PROMPTS, jnp.ones(PROMPTS.shape, bool), rollout.tokens, rollout.mask
    )
    np.testing.assert_allclose(again, rollout.logps, atol=1e-5)


def test_gradients_reach_the_adapter_through_it():
    base, added = quantise(random_params(SMALL)), adapter()
    total = lambda params, base: logps(MODEL, on_base(params, base)).sum()  # noqa: E731
    found, expected = jax.grad(total)(added, base), jax.grad(total)(added, dequantise(base))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(jnp.abs(theirs).max()))


def test_it_lies_on_a_mesh_as_the_matrix_does():
    mesh = AbstractMesh((1, 2, 2), AXES)
    model = MODEL.clone(mesh=mesh)
    places = tree_shardings(model, quantise(random_params(SMALL)))
    plain = parameter_shardings(SMALL, mesh)
    for name in ("up", "down"):
        place, spec = places["layers"]["mlp"][name], plain[f"layers/mlp/{name}"].spec
        assert place["int8"].spec == spec
        assert tuple(place["scale"].spec) == tuple(spec)[:2]
