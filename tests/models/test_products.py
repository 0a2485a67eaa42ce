"""Products with gradients of their own: the plain ones' numbers, and nothing computed twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import SMALL, random_params

from jaxalign.models.products import project, transposed
from jaxalign.models.transformer import Transformer


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_are_those_of_the_plain_product(dtype):
    rng = np.random.default_rng(0)
    x, weight, grad = (
        jnp.asarray(rng.normal(size=shape), dtype) for shape in ((2, 5, 8), (6, 8), (2, 5, 6))
    )

    def plain(x, weight):
        return jnp.einsum("...i,oi->...o", x, weight)

    for function in (plain, project):
        value, back = jax.vjp(function, x, weight)
        wide = np.asarray(x, np.float64), np.asarray(weight, np.float64), np.asarray(grad, float)
        exact = (
            np.einsum("bti,oi->bto", *wide[:2]),
            np.einsum("bto,oi->bti", wide[2], wide[1]),
            np.einsum("bto,bti->oi", wide[2], wide[0]),
        )
        tolerance = 1e-5 if dtype == jnp.float32 else 0.05
        for got, right in zip((value, *back(grad)), exact, strict=True):
            assert got.dtype == dtype
            np.testing.assert_allclose(np.asarray(got, float), right, rtol=tolerance, atol=0.05)


@pytest.mark.parametrize("first", [1.0, jnp.inf, jnp.nan])
def test_a_transpose_is_one_whatever_the_first_entry_is(first):
    x = jnp.arange(24.0).reshape(2, 3, 4).astype(jnp.bfloat16).at[0, 0, 0].set(first)
    turned = jax.jit(transposed)(x).astype(jnp.float32)
    np.testing.assert_array_equal(turned, np.swapaxes(np.asarray(x, np.float32), 1, 2))


def test_remat_by_products_computes_none_again():
    """A custom gradient hides its product from the policy; its name shows it."""
    tokens, mask = jnp.ones((2, 3), jnp.int32), jnp.ones((2, 3), bool)

    def flops(remat):
        model = Transformer(SMALL, dtype=jnp.float32, remat=remat)
        loss = lambda params: model.logps(params, tokens, mask, tokens, mask).sum()  # noqa: E731
        compiled = jax.jit(jax.grad(loss)).lower(random_params(SMALL)).compile()
        return compiled.cost_analysis()["flops"]

    none, dots, full = map(flops, ("none", "dots", "full"))
    # What is left are norms, the gates' activation, and the like.
    assert dots - none < 0.2 * (full - none)
