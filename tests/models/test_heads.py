"""Tiled log-probabilities equal those of the full logits, and never hold them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight_devices import run_on_eight_devices

from jaxalign.losses import token_entropies
from jaxalign.models.heads import hidden_entropies, hidden_token_logps, logits

BATCH, LENGTH, WIDTH, VOCAB = 3, 7, 5, 11


def random_inputs(batch=BATCH, length=LENGTH, width=WIDTH, vocab=VOCAB):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(batch, length, width)).astype(np.float32)
    weight = rng.normal(size=(vocab, width)).astype(np.float32)
    tokens = rng.integers(vocab, size=(batch, length)).astype(np.int32)
    return hidden, weight, tokens


def full(hidden, weight, tokens, temperature):
    z = jnp.einsum("btd,vd->btv", hidden, weight) / temperature
    return jnp.take_along_axis(jax.nn.log_softmax(z), tokens[..., None], axis=-1)[..., 0]


def test_by_hand():
    """Logits (0, ln 3) at temperature 1/2 are (0, ln 9): probabilities 1/10 and 9/10."""
    hidden = jnp.array([[[1.0], [1.0]]])
    weight = jnp.array([[0.0], [np.log(3.0)]])
    logps = hidden_token_logps(hidden, weight, jnp.array([[0, 1]]), temperature=0.5)
    np.testing.assert_allclose(np.exp(logps), [[0.1, 0.9]], rtol=1e-6)


@pytest.mark.parametrize("tile", [1, 4, 5, 10, 11, 1000, None])  # of 11 words
def test_value_and_gradients_equal_full_logits(tile):
    hidden, weight, tokens = random_inputs()
    cotangent = np.random.default_rng(1).normal(size=tokens.shape).astype(np.float32)

    def with_gradients(logps):
        logp, pullback = jax.vjp(logps, hidden, weight)
        return logp, *pullback(cotangent)

    got = jax.jit(with_gradients, static_argnums=0)(
        lambda h, w: hidden_token_logps(h, w, tokens, temperature=0.6, tile=tile)
    )
    expected = with_gradients(lambda h, w: full(h, w, tokens, 0.6))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_bfloat16_accumulates_in_float32():
    """Products of bfloat16 numbers are summed and normalised in float32."""
    hidden, weight, tokens = random_inputs()
    half = hidden.astype(jnp.bfloat16)
    rounded = np.asarray(half, np.float32), np.asarray(weight.astype(jnp.bfloat16), np.float32)
    logps = hidden_token_logps(half, weight, tokens)
    assert logps.dtype == jnp.float32
    np.testing.assert_allclose(logps, full(*rounded, tokens, 1.0), atol=1e-5)
    grads = jax.grad(lambda h, w: hidden_token_logps(h, w, tokens).sum(), argnums=(0, 1))(
        half, weight
    )
    expected = jax.grad(lambda h, w: full(h, w, tokens, 1.0).sum(), argnums=(0, 1))(*rounded)
    assert [grad.dtype for grad in grads] == [jnp.bfloat16, jnp.float32]
    for got, wanted in zip(grads, expected, strict=True):
        np.testing.assert_allclose(np.asarray(got, np.float32), wanted, atol=0.1)


def test_logits_are_float32():
    hidden, weight, _ = random_inputs()
    z = logits(hidden.astype(jnp.bfloat16), weight)
    assert z.shape == (BATCH, LENGTH, VOCAB)
    assert z.dtype == jnp.float32


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_no_buffer_of_all_logits(backward):
    """The largest array of the compiled program is one tile of logits, not all V of them."""
    batch, length, width, vocab, tile = 8, 64, 4, 500, 16
    arrays = random_inputs(batch, length, width, vocab)

    def loss(hidden, weight, tokens):
        return hidden_token_logps(hidden, weight, tokens, tile=tile).sum()

    function = jax.grad(loss, argnums=(0, 1)) if backward else loss
    compiled = jax.jit(function).lower(*arrays).compile()
    shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", compiled.as_text())
    largest = max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)
    assert largest == batch * length * tile  # equal, not less: the pattern does read the program
    everything = 4 * batch * length * vocab  # bytes
    assert compiled.memory_analysis().temp_size_in_bytes < everything / 4


_SHARED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxalign.models.heads import hidden_token_logps
from jaxalign.models.sharding import make_mesh
from jaxalign.planning.collectives import read_messages

rng = np.random.default_rng(0)
hidden = rng.normal(size=(8, 6, 16)).astype(np.float32)
weight = rng.normal(size=(48, 16)).astype(np.float32)
tokens = rng.integers(48, size=(8, 6)).astype(np.int32)
cotangent = rng.normal(size=tokens.shape).astype(np.float32)

def with_gradients(hidden, weight, mesh=None):
    compute = lambda h, w: hidden_token_logps(h, w, tokens, temperature=0.7, tile=5, mesh=mesh)
    logps, pullback = jax.vjp(compute, hidden, weight)
    return logps, *pullback(cotangent)

expected = with_gradients(hidden, weight)
for sizes in ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 1, 5)):
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = make_mesh(*sizes, devices=devices)
    place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
    words = () if sizes[2] == 5 else ("tensor", "fsdp")  # 5 does not divide 48: words stay whole
    laid = place(hidden, ("data", "fsdp") if sizes[2] < 5 else None), place(weight, *words)
    program = jax.jit(with_gradients, static_argnums=2).lower(*laid, mesh).compile()
    for got, wanted in zip(program(*laid), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)
    messages = read_messages(program.as_text())
    assert max((m.times for m in messages), default=1) == 1, messages
    print("x".join(map(str, sizes)), "equal")
"""


def test_devices_share_words_and_rows():
    """Value and gradients are those of one device, and no collective runs once a tile."""
    lines, messages = run_on_eight_devices(_SHARED)
    meshes = ("8x1x1", "1x8x1", "1x1x8", "2x2x2", "1x1x5")
    assert lines == [f"{mesh} equal" for mesh in meshes], messages


def test_bad_arguments_are_named():
    hidden, weight, tokens = random_inputs()
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        hidden_token_logps(hidden, weight, tokens, temperature=0)
    with pytest.raises(ValueError, match="tile must be at least 1, got 0"):
        hidden_token_logps(hidden, weight, tokens, tile=0)


@pytest.mark.parametrize("rows", [1, 4, 21, None])  # of 21
def test_entropies_and_their_gradients_are_those_of_full_logits(rows):
    hidden, weight, _ = random_inputs()
    cotangent = np.random.default_rng(1).normal(size=hidden.shape[:2]).astype(np.float32)

    def of_full_logits(hidden, weight):
        z = jnp.einsum("btd,vd->btv", hidden, weight)
        return (token_entropies(z, temperature=0.7) * cotangent).sum()

    def of_some_rows(hidden, weight):
        found = hidden_entropies(hidden, weight, temperature=0.7, rows=rows)
        return (found * cotangent).sum()

    both = (jax.value_and_grad(f, argnums=(0, 1)) for f in (of_some_rows, of_full_logits))
    (value, gradients), (wanted, wanted_gradients) = (f(hidden, weight) for f in both)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for found, right in zip(gradients, wanted_gradients, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-5)


def test_entropies_never_hold_all_logits():
    """32 rows of 4,096 words are 512 KB; eight rows at a time are 128."""
    hidden, weight, _ = random_inputs(batch=2, length=16, width=4, vocab=4096)
    loss = lambda hidden, weight: hidden_entropies(hidden, weight, rows=8).sum()  # noqa: E731
    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, weight).compile().as_text()
    sizes = [
        np.prod([int(n) for n in shape.split(",")])
        for shape in re.findall(r"f32\[([\d,]+)\]", text)
    ]
    assert max(sizes) < 32 * 4096
