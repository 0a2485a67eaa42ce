"""What is wrong with a user's network, reward or objective, in one line, before a run is started.

Each check runs the piece on inputs of a few tokens, under jit, and raises a ValueError that says
what does not hold. Passing says that the piece fits the step, not that it is any good.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.engine.experience import Experience, Rows
from jaxalign.engine.gradients import map_parts
from jaxalign.engine.objective import Objective
from jaxalign.engine.ppo import PPO, with_critic
from jaxalign.engine.reductions import Totals
from jaxalign.engine.state import policy_of
from jaxalign.models.config import ModelConfig
from jaxalign.models.decoder import Decoder
from jaxalign.models.transformer import Transformer
from jaxalign.records import Batch, Credit, Metrics, Params, Prompts, Rollout, Score
from jaxalign.rewards.terms import GivenValues, HostValues

_LARGE = 1024  # entries from which an array has no business in a program as a constant


_PROMPTS = np.array([[0, 3, 1], [2, 1, 3]], np.int32)
_PROMPT_MASK = np.array([[False, True, True], [True, True, True]])
_TOKENS = np.array([[1, 2, 3], [3, 0, 1], [2, 2, 0], [0, 1, 1]], np.int32)
_PREFIX = np.array([1, 2], np.int32)
_KEPT = np.array([3, 0], np.int32)  # rows that go on after the first token


def check_decoder(model: Decoder, params: Params, *, tolerance: float = 1e-3) -> None:
    """Checks that a decoder's functions agree: the cache with the full pass, logps with logits.

    Args:
      model: a `Decoder` of at least four words.
      params: its parameters.
      tolerance: largest difference of two log-probabilities that ought to be the same; a network
        in bfloat16 needs about 0.1.

    Raises:
      ValueError: the first thing that does not hold.
    """
    scores = _jitted("next_logits", lambda params: _step_logits(model, params))(params)
    rows, shape = _TOKENS.shape[0], scores.shape
    _expect(
        len(shape) == 3 and shape[1] == rows,
        f"next_logits has the shape {shape[1:]} for {rows} rows: return [rows, vocabulary]",
    )
    _check_numbers("next_logits", scores, shape)
    logps = _jitted("logps", lambda params: _full_logps(model, params))(params)
    _check_numbers("logps", logps, _TOKENS.shape)
    stepwise = _chosen(scores)
    _agree(stepwise[:, 0], logps[:, 0], tolerance, "next_logits and logps differ from token 0 on")
    _agree(stepwise, logps, tolerance, "the cache disagrees with the full pass, logps")
    hot = _jitted("logps", lambda params: _full_logps(model, params, temperature=2.0))(params)
    _agree(_chosen(scores / 2.0), hot, tolerance, "logps are not those of softmax(z / temperature)")
    kept = _jitted("take", lambda params: _step_logits(model, params, kept=_KEPT))(params)
    _agree(_chosen(kept, _KEPT)[:, 1:], logps[_KEPT, 1:], tolerance, "take mixes up rows")
    _check_prompts(model, params, logps, tolerance)
    gradient = jax.grad(lambda params: _full_logps(model, params)[:, :2].sum())
    gradients = _jitted("the gradient of logps", gradient)(params)
    _check_gradient("logps", gradients)


def _check_prompts(model: Decoder, params: Params, logps: jax.Array, tolerance: float) -> None:
    """A prefix is as if written before each prompt, and padding may stand on either side."""
    opening = np.broadcast_to(_PREFIX, (len(_PROMPTS), _PREFIX.size))
    written = np.concatenate([opening, _PROMPTS], axis=1)
    exists = np.concatenate([np.ones(opening.shape, bool), _PROMPT_MASK], axis=1)
    alone = lambda params: _full_logps(model, params, written, exists, prefix=None)  # noqa: E731
    apart = _jitted("logps", alone)(params)
    _agree(apart, logps, tolerance, "a prefix is not read as if it stood before every prompt")
    order = np.argsort(~_PROMPT_MASK, axis=1, kind="stable")
    moved, mask = (np.take_along_axis(x, order, axis=1) for x in (_PROMPTS, _PROMPT_MASK))
    right = _jitted("logps", lambda params: _full_logps(model, params, moved, mask))(params)
    _agree(right, logps, tolerance, "prompts padded on the left and on the right are read unalike")


def check_reward(
    reward: Any,
    batch: Batch,
    *,
    vocab_size: int,
    samples_per_prompt: int = 2,
    max_new_tokens: int = 4,
) -> None:
    """Checks a reward on completions drawn at random.

    Args:
      reward: a `jaxalign.rewards.Reward`; in the place of each part on the host one number a row
        is given, so a part that scores fewer rows can't be checked here.
      batch: N prompts with what the reward needs to know of them.
      vocab_size: V; tokens are drawn from it.
      samples_per_prompt: G.
      max_new_tokens: T.

    Raises:
      ValueError: the first thing that does not hold.
    """
    prompts = batch.prompts.tokens.shape[0]
    shape = (prompts * samples_per_prompt, max_new_tokens)
    samples = _random_rollout(shape, prompts, vocab_size)
    _check_leaves(reward)
    zeros = GivenValues(jnp.zeros(shape[0]))
    is_host = lambda node: isinstance(node, HostValues)  # noqa: E731
    reward = jax.tree.map(lambda x: zeros if is_host(x) else x, reward, is_leaf=is_host)
    score = _jitted("the reward", lambda reward, batch: reward(batch, samples))(reward, batch)
    _expect(
        isinstance(score, Score),
        f"the reward returns {_named(score)}: return a Score, or use device_reward",
    )
    for name, values in {"rewards": score.rewards, **score.terms}.items():
        _check_numbers(name, values, (prompts, samples_per_prompt))
    if score.outcome is not None:
        _check_numbers("outcome", score.outcome, (prompts, samples_per_prompt))
    for name, values in score.details.items():
        found = f"the detail {name} has the shape {values.shape}"
        _expect(values.shape == shape[:1], f"{found}: return one entry for each of {shape[0]} rows")
    if score.credit is not None:
        _check_credit(score.credit, (prompts, samples_per_prompt), shape)
    _check_scalars(score.metrics)
    traced = jax.make_jaxpr(lambda *arguments: arguments[0](*arguments[1:]))(reward, batch, samples)
    for constant in _constants(traced):
        _expect(
            np.size(constant) <= _LARGE,
            f"the reward holds an array of shape {np.shape(constant)} as a constant of the "
            "program: make it a field of the pytree",
        )


def _check_credit(credit: Credit, samples: tuple[int, int], tokens: tuple[int, int]) -> None:
    parts = len(credit.rewards) if credit.part is not None else 2
    _check_numbers("credit.rewards", credit.rewards, (parts, *samples))
    if credit.part is None:
        return
    found = f"credit.part has the shape {credit.part.shape}"
    _expect(credit.part.shape == tokens, f"{found}: return one entry for each token, {tokens}")
    _expect(
        jnp.issubdtype(credit.part.dtype, jnp.integer)
        and bool(((credit.part >= 0) & (credit.part < parts)).all()),
        f"credit.part names parts that credit.rewards does not have: it has 0 to {parts - 1}",
    )


def _check_leaves(reward: Any) -> None:
    leaves = jax.tree.leaves(reward)
    _expect(
        not (len(leaves) == 1 and leaves[0] is reward),
        "the reward is no registered pytree: wrap a function by device_reward, or register its "
        "class (jax.tree_util.register_dataclass)",
    )
    for leaf in leaves:
        _expect(
            isinstance(leaf, jax.Array | np.ndarray),
            f"the reward has the leaf {leaf!r:.40}: make what is no array static",
        )


def check_objective(
    objective: Objective,
    model: Any = None,
    params: Params | None = None,
    *,
    base: Params | None = None,
) -> None:
    """Checks an objective on a rollout of random tokens: gradients, and that parts add up.

    Args:
      objective: an `Objective`.
      model: a `Decoder` of at least four words; by default a random `Transformer`.
      params: what is trained, with a critic for PPO; given exactly when the model is.
      base: parameters of the reference; by default the policy's where the objective has a `kl`.

    Raises:
      ValueError: the first thing that does not hold.
    """
    _expect((model is None) == (params is None), "give both a model and params, or neither")
    if model is None:
        model, params = _tiny_transformer(critic=isinstance(objective, PPO))
    if base is None and getattr(objective, "kl", None) is not None:
        base = policy_of(params)
    batch, samples, score = _tiny_rollout()
    begin = lambda params: objective.experience(  # noqa: E731
        model, params, batch, samples, score, base=base, parts=1
    )
    experience, metrics = _jitted("experience", begin)(params)
    _expect(
        isinstance(experience, Experience),
        f"experience returns {_named(experience)} first: return (Experience, metrics)",
    )
    rows = experience.rows
    shape = rows.mask.shape[: max(1, rows.advantages.ndim)]
    _check_numbers("advantages", rows.advantages, shape)
    totals = Totals.of(rows.mask)

    def loss(params: Params, rows: Rows) -> tuple[jax.Array, Metrics]:
        return objective.loss(model, params, Experience(rows, experience.prefix), totals)

    whole = _jitted("loss", jax.value_and_grad(loss, has_aux=True))
    (value, more), gradients = whole(params, rows)
    _check_numbers("loss", value, ())
    _check_gradient("loss", gradients)
    _check_scalars(metrics | more)
    parts = map_parts(lambda rows: loss(params, rows)[0][None], rows, 2).sum()
    _agree(parts, value, 1e-4, "the losses of two micro-batches do not add up: divide by totals")


# --- what they are made of ------------------------------------------------------------------------


def _full_logps(
    model: Decoder,
    params: Params,
    prompts: np.ndarray = _PROMPTS,
    mask: np.ndarray = _PROMPT_MASK,
    *,
    prefix: np.ndarray | None = _PREFIX,
    temperature: float = 1.0,
) -> jax.Array:
    arrays = map(jnp.asarray, (prompts, mask, _TOKENS, np.ones(_TOKENS.shape, bool)))
    opening = None if prefix is None else jnp.asarray(prefix)
    return model.logps(params, *arrays, prefix=opening, temperature=temperature)


def _step_logits(model: Decoder, params: Params, kept: np.ndarray | None = None) -> jax.Array:
    """Logits of each completion token `[T, B, V]`, one step after the other.

    With `kept` these rows alone go on after the first token, and all logits are theirs.
    """
    prompts, mask, tokens, prefix = map(jnp.asarray, (_PROMPTS, _PROMPT_MASK, _TOKENS, _PREFIX))
    context = model.prefill(params, prompts, mask, prefix)
    group = _TOKENS.shape[0] // _PROMPTS.shape[0]
    cache = model.start(params, context, group, _TOKENS.shape[1])
    current = jnp.repeat(prompts[:, -1], group)
    scores = []
    for step in range(_TOKENS.shape[1]):
        logits, cache = model.next_logits(params, context, cache, current, jnp.int32(step))
        if kept is not None and step == 0:
            context, cache = model.take(context, cache, jnp.asarray(kept))
            logits, tokens = logits[kept], tokens[kept]
        scores.append(logits)
        current = tokens[:, step]
    return jnp.stack(scores)


def _chosen(scores: jax.Array, rows: Any = slice(None)) -> jax.Array:
    """Log-probabilities `[B, T]` of some rows' tokens under their logits `[T, B, V]`."""
    logps = jax.nn.log_softmax(scores.transpose(1, 0, 2))
    return jnp.take_along_axis(logps, jnp.asarray(_TOKENS[rows])[:, :, None], axis=2)[:, :, 0]


def _tiny_transformer(*, critic: bool) -> tuple[Transformer, Params]:
    model = Transformer(
        ModelConfig(
            16, num_layers=2, model_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=16
        ),
        dtype=jnp.float32,
    )
    ids = jnp.zeros((1, 1), jnp.int32)
    params: Any = model.init(jax.random.key(0), ids, ids, ids == 0)["params"]
    return model, with_critic(model, params) if critic else params


def _tiny_rollout() -> tuple[Batch, Rollout, Score]:
    prompts = jnp.array([[1, 2], [3, 1], [2, 2], [0, 1]], jnp.int32)
    batch = Batch(Prompts(prompts, jnp.ones(prompts.shape, bool)), kind=jnp.array([0, 0, 1, 2]))
    rewards = jnp.array([[1.0, 0.0], [0.5, 0.25], [1.0, 1.0], [0.0, 2.0]])
    return batch, _random_rollout((8, 3), 4, 4), Score(rewards, terms={"one": rewards})


def _random_rollout(shape: tuple[int, int], prompts: int, vocab_size: int) -> Rollout:
    rng = np.random.default_rng(0)
    mask = np.arange(shape[1]) < rng.integers(1, shape[1] + 1, (shape[0], 1))
    tokens = np.where(mask, rng.integers(0, vocab_size, shape), 0)
    no = jnp.zeros(shape[0], bool)
    return Rollout(
        tokens=jnp.asarray(tokens, jnp.int32),
        mask=jnp.asarray(mask),
        present=jnp.asarray(mask),
        logps=jnp.asarray(np.where(mask, -1.0, 0.0), jnp.float32),
        mode=no.astype(jnp.int32),
        finished=~no,
        cut=no,
        prompt_of_row=jnp.repeat(jnp.arange(prompts), shape[0] // prompts),
    )


def _constants(traced: Any) -> Iterator[Any]:
    """The arrays that a traced function holds, and those that jitted functions in it hold."""
    yield from traced.consts
    for equation in traced.jaxpr.eqns:
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "jaxpr") and hasattr(inner, "consts"):
                yield from _constants(inner)


def _jitted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under jit; what goes wrong becomes one line."""

    def call(*arguments: Any) -> Any:
        try:
            return jax.jit(function)(*arguments)
        except Exception as error:  # whatever the user's code does
            first = (str(error).strip().splitlines() or [""])[0]
            raise ValueError(f"{name} fails under jit: {type(error).__name__}: {first}") from error

    return call


def _named(value: Any) -> str:
    return "an array" if isinstance(value, jax.Array) else f"a {type(value).__name__}"


def _expect(holds: Any, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _check_numbers(name: str, values: jax.Array, shape: tuple[int, ...]) -> None:
    found = jnp.shape(values)
    _expect(found == shape, f"{name} has the shape {found}: return {shape}")
    _expect(values.dtype == jnp.float32, f"{name} is {values.dtype}: return float32")
    _expect(jnp.isfinite(values).all(), f"{name} is not finite")


def _check_scalars(metrics: Metrics) -> None:
    for name, value in metrics.items():
        _expect(jnp.ndim(value) == 0, f"the metric {name} is no scalar")


def _check_gradient(name: str, gradients: Params) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        place = jax.tree_util.keystr(path)
        _expect(jnp.isfinite(leaf).all(), f"the gradient of {name} is not finite at {place}")
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
    _expect(largest > 0, f"the gradient of {name} is zero: nothing would be learned")


def _agree(left: jax.Array, right: jax.Array, tolerance: float, otherwise: str) -> None:
    gap = float(jnp.abs(left - right).max())
    _expect(gap <= tolerance, f"{otherwise} (by {gap:.2g})")
