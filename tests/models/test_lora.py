"""Low-rank adapters: what they add, what their gradients are, and that nothing else has any."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from tiny_model import SMALL, random_params

from jaxalign.host.errors import InputError
from jaxalign.models.lora import (
    Lora,
    adapter_axes,
    adapter_shapes,
    init_adapter,
    merge,
    off_base,
    on_base,
)
from jaxalign.models.network import product
from jaxalign.models.transformer import Transformer
from jaxalign.sampling import Temperature, sample

LORA = Lora(rank=3, alpha=6.0)
PLAIN = Transformer(SMALL, dtype=jnp.float32)
MODEL = Transformer(SMALL, dtype=jnp.float32, lora=LORA)
MATRICES = {"query", "key", "value", "output", "gate", "up", "down"}

_RNG = np.random.default_rng(0)
PROMPTS = _RNG.integers(1, SMALL.vocab_size, (2, 4)).astype(np.int32)
TOKENS = _RNG.integers(1, SMALL.vocab_size, (4, 5)).astype(np.int32)
THERE = np.ones(PROMPTS.shape, bool), np.ones(TOKENS.shape, bool)
WEIGHTS = _RNG.normal(size=TOKENS.shape).astype(np.float32)


@pytest.fixture(scope="module")
def base():
    return random_params(SMALL)


@pytest.fixture(scope="module")
def adapter():
    """One that has learned something: neither A nor B is zero."""
    new, rng = init_adapter(SMALL, LORA, jax.random.key(0)), np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), new)


@functools.partial(jax.jit, static_argnames="model")
def logps(params, model=MODEL):
    return model.logps(params, PROMPTS, THERE[0], TOKENS, THERE[1], temperature=0.8)


def weighted(params, model):
    return jnp.vdot(WEIGHTS, logps(params, model))


def drawn(model, params):
    return sample(
        model,
        params,
        jnp.asarray(PROMPTS),
        jnp.asarray(THERE[0]),
        jax.random.key(3),
        samples_per_prompt=2,
        max_new_tokens=6,
        method=Temperature(0.9),
        stop=(-1,),
    )


def largest(left, right) -> float:
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return max(float(jnp.abs(a - b).max()) for a, b in pairs)


def test_what_an_adapter_adds_by_hand():
    """x = [1, 2], W the identity, A = [[3, 4]], B = [[1], [0]], α/r = 2: y = [1 + 2·11, 2]."""

    class One(nn.Module):
        @nn.compact
        def __call__(self, x):
            return product(self, "w", x, (2, 2), Lora(rank=1, alpha=2.0))

    adapter = {"w": {"a": jnp.array([[3.0, 4.0]]), "b": jnp.array([[1.0], [0.0]])}}
    variables = {"params": {"w": jnp.eye(2)}, "adapter": adapter}
    np.testing.assert_array_equal(One().apply(variables, jnp.array([[1.0, 2.0]])), [[23.0, 2.0]])


@pytest.mark.parametrize(
    ("lora", "scale"),
    [
        (Lora(rank=16, alpha=32.0), 2.0),
        (Lora(rank=16, alpha=32.0, rank_stabilised=True), 8.0),
        (Lora(), 0.0),
    ],
)
def test_the_scale(lora, scale):
    assert lora.scale == scale


def test_a_new_adapter_adds_nothing(base):
    """B = 0: log-probabilities and sampled tokens are those of the base, to the bit."""
    new = on_base(init_adapter(SMALL, LORA, jax.random.key(0)), base)
    np.testing.assert_array_equal(logps(new), logps(base, PLAIN))
    ours, plain = drawn(MODEL, new), drawn(PLAIN, base)
    np.testing.assert_array_equal(ours.tokens, plain.tokens)
    np.testing.assert_array_equal(ours.logps, plain.logps)


def test_without_its_adapter_it_is_the_base(base, adapter):
    """What scores by the start model, or is a KL's reference, runs the same model on the base."""
    np.testing.assert_array_equal(logps(base), logps(base, PLAIN))
    assert float(jnp.abs(logps(on_base(adapter, base)) - logps(base)).max()) > 0.01


def test_merged_it_does_the_same(base, adapter):
    merged = merge(on_base(adapter, base), LORA)
    assert merged.keys() == base.keys()
    np.testing.assert_allclose(logps(on_base(adapter, base)), logps(merged, PLAIN), atol=1e-5)
    assert merge(base, LORA) is base


def test_sampled_and_trained_log_probabilities_are_the_same(base, adapter):
    """Both run the two products, unmerged."""
    policy = on_base(adapter, base)
    samples = drawn(MODEL, policy)
    trained = MODEL.logps(
        policy, PROMPTS, THERE[0], samples.tokens, samples.present, temperature=0.9
    )
    np.testing.assert_allclose(samples.logps, trained, atol=2e-6)


def test_gradients_are_projections_of_the_merged_models(base, adapter):
    """∂A = s Bᵀ ∂W and ∂B = s ∂W Aᵀ, with ∂W of the model that has W + s B A for W."""
    ours = jax.grad(lambda x: weighted(on_base(x, base), MODEL))(adapter)
    of_merged = jax.grad(weighted)(merge(on_base(adapter, base), LORA), PLAIN)
    whole = traverse_util.flatten_dict(of_merged, sep="/")
    parts = traverse_util.flatten_dict(adapter["adapter"], sep="/")
    for path, gradient in traverse_util.flatten_dict(ours["adapter"], sep="/").items():
        weight, part = path.rsplit("/", 1)
        if part == "a":
            due = jnp.einsum("lor,loi->lri", parts[f"{weight}/b"], whole[weight])
        else:
            due = jnp.einsum("loi,lri->lor", whole[weight], parts[f"{weight}/a"])
        np.testing.assert_allclose(gradient, LORA.scale * due, atol=1e-4, err_msg=path)
        assert float(jnp.abs(gradient).max()) > 1e-3, path


def test_gradients_are_finite_differences(base, adapter):
    """Along the gradient, where the slope is its length; sums are float32, so the step is large."""
    gradient = jax.grad(lambda x: weighted(on_base(x, base), MODEL))(adapter)
    length = np.sqrt(sum(float(jnp.sum(x * x)) for x in jax.tree.leaves(gradient)))

    def value(t):
        moved = jax.tree.map(lambda x, d: x + t * d / length, adapter, gradient)
        return float(weighted(on_base(moved, base), MODEL))

    step = 0.01
    np.testing.assert_allclose((value(step) - value(-step)) / (2 * step), length, rtol=1e-2)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_the_compiled_gradient_has_none_of_the_base(remat):
    """By counted FLOPs: 4 a weight and token in place of 6, or 6 of 8 with full remat."""
    config = SMALL.__class__(
        vocab_size=64, num_layers=1, model_dim=64, num_heads=2, num_kv_heads=2, head_dim=32,
        mlp_dim=256,
    )  # fmt: skip
    lora = Lora(rank=1)
    shapes = random_params(config), init_adapter(config, lora, jax.random.key(0))
    prompts, tokens = jnp.ones((1, 2), jnp.int32), jnp.ones((1, 256), jnp.int32)

    def flops(model, loss, *arguments):
        def run(trained, frozen):
            states = model.states(loss(trained, frozen), prompts, prompts > 0, tokens, tokens > 0)
            return states.astype(jnp.float32).sum()

        compiled = jax.jit(jax.grad(run)).lower(*arguments).compile()
        return compiled.cost_analysis()["flops"]

    model = Transformer(config, dtype=jnp.float32, remat=remat)
    full = flops(model, lambda params, _: params, shapes[0], None)
    ours = flops(model.clone(lora=lora), on_base, shapes[1], shapes[0])
    weights = 256 * (4 * 64 * 64 + 3 * 64 * 256)  # a product with each, for each token
    # The base's gradients are 2 FLOPs a weight and token. More is saved, for nothing goes back
    # beyond the first layer's products.
    assert full - ours > 2 * weights


def test_targets_say_which_matrices_have_adapters():
    shapes = adapter_shapes(SMALL, LORA)
    assert {path.split("/")[2] for path in shapes} == MATRICES
    layers, width = SMALL.num_layers, SMALL.model_dim
    assert shapes["layers/mlp/up/a"] == (layers, 3, width)
    assert shapes["layers/mlp/up/b"] == (layers, SMALL.mlp_dim, 3)
    assert adapter_axes(SMALL, LORA)["layers/attention/output/b"] == ("layers", "embed", "rank")
    only = adapter_shapes(SMALL, Lora(rank=2, targets=("mlp",)))
    assert {path.split("/")[2] for path in only} == {"gate", "up", "down"}
    assert adapter_shapes(SMALL, Lora()) == {}


def test_a_starts_uniform_within_one_over_the_root_of_its_inputs():
    new = init_adapter(SMALL, Lora(rank=64), jax.random.key(1))
    leaves = traverse_util.flatten_dict(new["adapter"], sep="/")
    first = np.asarray(leaves["layers/mlp/down/a"])
    bound = SMALL.mlp_dim**-0.5
    assert np.abs(first).max() <= bound
    np.testing.assert_allclose(first.std(), bound / 3**0.5, rtol=0.05)
    assert not any(np.any(x) for path, x in leaves.items() if path.endswith("/b"))
    assert largest(first[0], first[1]) > 0.01  # layers draw apart


def test_an_adapter_and_its_base(base, adapter):
    both = on_base(adapter, base)
    assert both.keys() == {"base", "adapter"}
    assert off_base(both) == adapter
    assert on_base(base, None) is base
    assert off_base(base) is base


@pytest.mark.parametrize("model", [PLAIN, MODEL.clone(lora=Lora(rank=7))], ids=["none", "other"])
def test_a_model_of_another_rank_is_refused(model, base, adapter):
    with pytest.raises(ValueError, match="an adapter of rank 3, and the model's lora has"):
        logps(on_base(adapter, base), model)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": -1}, "rank=-1 is too small"),
        ({"rank": 2, "alpha": 0.0}, "alpha=0.0 must be a number above 0"),
        ({"rank": 2, "targets": ()}, "targets is empty: name attention, mlp, or both"),
    ],
)
def test_settings_that_cannot_work(fields, message):
    with pytest.raises(InputError, match=message):
        Lora(**fields)
