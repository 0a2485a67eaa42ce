"""FLOPs of traced programs, counted by hand."""

import jax
import jax.numpy as jnp
from eight_devices import run_on_eight_devices
from tiny_model import SMALL, random_params

from jaxalign.models.transformer import Transformer
from jaxalign.planning.flops import count_flops

A, B = jnp.ones((3, 4)), jnp.ones((4, 5))


def flops(function, *arguments, loop_trips=1, inside=None):
    jaxpr = jax.jit(function).trace(*arguments).jaxpr
    return count_flops(jaxpr, loop_trips=loop_trips, inside=inside)


def test_a_product_is_two_operations_a_term():
    assert flops(lambda a, b: a @ b + 1, A, B) == 2 * 3 * 4 * 5
    batched = jnp.ones((7, 3, 4)), jnp.ones((7, 5, 4))
    assert flops(lambda a, b: jnp.einsum("nij,nkj->nik", a, b), *batched) == 7 * 2 * 3 * 4 * 5


def test_loops_count_their_turns_and_a_branch_its_dearest():
    square = jnp.ones((6, 6))
    one = 2 * 6**3

    def scanned(x):
        return jax.lax.scan(lambda c, _: (c @ x, None), x, length=9)[0]

    def until(x):
        return jax.lax.while_loop(lambda c: c.sum() < 0, lambda c: c @ x, x)

    def chosen(x):
        return jax.lax.cond(x.sum() > 0, lambda c: c @ c @ c, lambda c: c @ c, x)

    assert flops(scanned, square) == 9 * one
    assert flops(until, square, loop_trips=11) == 11 * one
    assert flops(chosen, square) == 2 * one


def test_what_is_computed_again_counts_again():
    """A gradient with respect to both factors takes two more products, rematerialisation three."""
    one = 2 * 3 * 4 * 5
    loss = lambda a, b: (a @ b).sum()  # noqa: E731
    assert flops(jax.value_and_grad(loss, argnums=(0, 1)), A, B) == 3 * one

    def again(a, b):
        inner = jax.checkpoint(lambda a, b: jnp.sin(a @ b).sum())
        return inner(a, b)

    assert flops(jax.value_and_grad(again, argnums=(0, 1)), A, B) == 4 * one


def test_inside_a_function_of_that_name():
    @jax.jit
    def named(a, b):
        return a @ b

    both = lambda a, b: named(a, b) @ jnp.ones((5, 8))  # noqa: E731
    assert flops(both, A, B) == 2 * 3 * 4 * 5 + 2 * 3 * 5 * 8
    assert flops(both, A, B, inside="named") == 2 * 3 * 4 * 5


_SHARED = """
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxalign.models.sharding import make_mesh
from jaxalign.planning.flops import count_flops

whole = jax.shard_map(
    lambda x, w: x @ w, mesh=make_mesh(2, 4, 1), in_specs=(P(("data", "fsdp")), P()),
    out_specs=P(("data", "fsdp")),
)
traced = jax.jit(whole).trace(jnp.ones((16, 3)), jnp.ones((3, 5)))
print(count_flops(traced.jaxpr, loop_trips=1) == 2 * 16 * 3 * 5)
"""


def test_what_each_device_does_counts_for_all():
    lines, messages = run_on_eight_devices(_SHARED)
    assert lines == ["True"], messages


def test_a_decoder_is_two_operations_a_weight_and_token():
    """Attention aside, which is counted apart: 2·P·tokens, P the weights of matrices."""
    model = Transformer(SMALL, dtype=jnp.float32)
    params = random_params(SMALL)
    prompts, tokens = jnp.ones((2, 5), jnp.int32), jnp.ones((4, 6), jnp.int32)
    counted = flops(
        lambda params: model.logps(params, prompts, prompts > 0, tokens, tokens > 0),
        params,
    )
    matrices = sum(x.size for x in jax.tree.leaves(params["layers"]) if x.ndim == 3)
    inputs, outputs = 2 * 5 + 4 * 6, 4 * 6
    weights = 2 * (matrices * inputs + params["embed"]["embedding"].size * outputs)
    heads = SMALL.num_layers * SMALL.num_heads * SMALL.head_dim
    attention = 2 * 2 * heads * (2 * 5 * 5 + 4 * 6 * 6 + 4 * 6 * 5)
    assert counted == weights + attention
