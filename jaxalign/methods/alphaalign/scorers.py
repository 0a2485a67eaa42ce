"""Who scores a run's answers for R_h: the start model, a reward model, or a Python function.

    --helpfulness likelihood          `jaxalign.rewards.answer_scores.answer_likelihood`
    --helpfulness MODEL               a reward model
    --helpfulness FILE.py:FUNCTION    (requests, answers) -> one number for each

A reward model that shares the policy's tokenizer scores inside the compiled step, from the tokens
as they were sampled. One with another tokenizer, and a function, take the split path
(`jaxalign.engine.split`): answers become text, and text a score.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign.data.prompts import Prompt
from jaxalign.data.templates import (
    bare_messages,
    encode_exchange,
    encode_frame,
    encode_prompts,
    pad,
)
from jaxalign.engine.split import Complete
from jaxalign.host.errors import InputError
from jaxalign.host.processes import are_several, fetch
from jaxalign.host.user_functions import describe, load_function, names_function
from jaxalign.models import load_pretrained, sequence_scores
from jaxalign.models.completion import compute_params
from jaxalign.models.sharding import to_devices
from jaxalign.models.transformer import Params, Transformer
from jaxalign.records import Batch, Rollout
from jaxalign.rewards.answer_scores import ScoreTokens, reward_model_scores
from jaxalign.rewards.verifiers import answer_span

FLAG = "--helpfulness"
LIKELIHOOD = "likelihood"

ScoreTexts = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""`(requests, answers) -> [n]` float32; higher is better."""


@dataclasses.dataclass(frozen=True)
class Helpfulness:
    """What scores a run's answers, inside the step or on the host; by default nothing does.

    Attributes:
      encode: inside the step: requests to questions `[N, Q]` and their mask; Q is the same for all
        batches. None on the host.
      score_tokens: inside the step: of a reward model; None for the start model's likelihood.
      params: what `score_tokens` takes, frozen.
      score_texts: on the host. None inside the step.
    """

    encode: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]] | None = None
    score_tokens: ScoreTokens | None = None
    params: Params | None = None
    score_texts: ScoreTexts | None = None


def start_likelihood(tokenizer: Any, max_prompt_tokens: int) -> Helpfulness:
    """The likelihood under the start model, which needs nothing else.

    Args:
      tokenizer: the policy's.
      max_prompt_tokens: the longest request, beyond what all chats begin with.
    """

    def encode(requests: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        bare = encode_prompts(
            tokenizer,
            bare_messages,
            requests,
            max_tokens=max_prompt_tokens,
            width=max_prompt_tokens,
        )
        opening = np.broadcast_to(bare.prefix, (len(requests), len(bare.prefix)))
        mask = np.concatenate([np.ones(opening.shape, bool), bare.mask], axis=1)
        return np.concatenate([opening, bare.tokens], axis=1), mask

    return Helpfulness(encode)


# --- reward models -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A reward model as it was loaded.

    Attributes:
      name: what the user called it.
      model: with a score head of one label.
      params: frozen, in the compute dtype.
      tokenizer: its own.
    """

    name: str
    model: Transformer
    params: Params
    tokenizer: Any


def load_reward_model(
    name: str, *, dtype: Any, mesh: jax.sharding.Mesh | None = None
) -> RewardModel:
    """Loads a Hugging Face sequence-classification model with one label and a chat template.

    Args:
      name: a folder or a hub id.
      dtype: compute dtype.
      mesh: devices that share it.

    Raises:
      InputError: as `load_pretrained`, several labels, or no chat template.
    """
    model, params, tokenizer = load_pretrained(name, dtype=dtype, mesh=mesh, classifier=True)
    if model.config.num_labels != 1:
        raise InputError(
            f"{FLAG} {name}: a classifier with {model.config.num_labels} labels; a reward model "
            "has one"
        )
    if not tokenizer.chat_template:
        raise InputError(
            f"{FLAG} {name}: its tokenizer has no chat template; add the one it was trained with "
            "as chat_template in its tokenizer_config.json"
        )
    return RewardModel(name, model, compute_params(params, dtype), tokenizer)


_PROBES = ("Yes.", "I'm sorry, no.", "1. Mix", "über", "'quoted'", "(so)", "$5")


def shares_tokenizer(theirs: Any, policys: Any) -> bool:
    """Whether a reward model can read the policy's answers as the tokens they are.

    Both must have the same tokens with the same ids, and the reward model's template must not
    tokenize an answer's first or last word together with what stands around it.

    Args:
      theirs: the reward model's tokenizer.
      policys: the policy's.
    """
    if theirs.get_vocab() != policys.get_vocab():
        return False
    before, behind = encode_frame(theirs, "How?")
    return all(
        encode_exchange(theirs, "How?", text)
        == [*before, *policys(text, add_special_tokens=False).input_ids, *behind]
        for text in _PROBES
    )


def by_reward_model(
    reward_model: RewardModel, tokenizer: Any, requests: Sequence[str], max_new_tokens: int
) -> Helpfulness:
    """A reward model's score: inside the step if it shares the policy's tokenizer.

    Args:
      reward_model: from `load_reward_model`.
      tokenizer: the policy's.
      requests: all that a run may ask it about, for the width of the arrays; at least one.
      max_new_tokens: T.

    Raises:
      InputError: inside the step, if the longest request and an answer pass its last position.
    """
    theirs = reward_model.tokenizer
    if not shares_tokenizer(theirs, tokenizer):
        return Helpfulness(score_texts=reward_model_texts(reward_model))
    frames = [encode_frame(theirs, request) for request in requests]
    width, closing = max(len(before) for before, _ in frames), frames[0][1]
    positions = width + max_new_tokens + len(closing)
    if positions > reward_model.model.config.max_positions:
        raise InputError(
            f"{FLAG} {reward_model.name}: request and max_new_tokens={max_new_tokens} take "
            f"{positions} positions, it has {reward_model.model.config.max_positions}: lower "
            "max_new_tokens or shorten the prompts"
        )

    def encode(requests: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return pad([encode_frame(theirs, request)[0] for request in requests], width)

    score = functools.partial(reward_model_scores, reward_model.model, tuple(closing))
    return Helpfulness(encode, score, reward_model.params)


_BUCKET = 64  # widths are multiples of it, so that few programs are compiled


def reward_model_texts(reward_model: RewardModel) -> ScoreTexts:
    """Scores of texts, which the reward model's own tokenizer and template turn into ids."""
    run = jax.jit(functools.partial(sequence_scores, reward_model.model))
    limit = reward_model.model.config.max_positions

    def score(requests: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        pairs = zip(requests, answers, strict=True)
        rows = [encode_exchange(reward_model.tokenizer, *pair) for pair in pairs]
        longest = max(map(len, rows))
        if longest > limit:
            raise InputError(
                f"{FLAG} {reward_model.name}: a request and its answer take {longest} positions, "
                f"it has {limit}: lower max_new_tokens or shorten the prompts"
            )
        tokens, mask = pad(rows, min(limit, -(-longest // _BUCKET) * _BUCKET))
        scores: np.ndarray = jax.device_get(run(reward_model.params, tokens, mask))[:, 0]
        return scores

    return score


# --- functions of the user's ---------------------------------------------------------------------


def function_texts(spec: str) -> ScoreTexts:
    """Scores by a Python function of the user's.

    Args:
      spec: FILE.py:FUNCTION. The function takes two lists of n texts, requests and answers, and
        returns n finite numbers, higher for better answers.

    Returns:
      the function with its result checked.

    Raises:
      InputError: as `load_function`; and, from the result, where the function raises or returns
        something else.
    """
    function = load_function(spec, FLAG)

    def score(requests: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        try:
            returned = function(list(requests), list(answers))
        except Exception as error:  # whatever the user's code does
            raise InputError(f"{FLAG} {spec}: it raised {describe(error)}; mend it") from error
        try:
            scores = np.asarray(returned, np.float32)
        except (TypeError, ValueError):
            scores = np.asarray(0.0)
        if scores.shape != (len(answers),):
            count = f"{len(returned)} things" if isinstance(returned, list) else repr(returned)[:40]
            raise InputError(
                f"{FLAG} {spec}: it returned {count} for {len(answers)} answers; return a list "
                "with one number for each"
            )
        if not np.isfinite(scores).all():
            row = int(np.argmin(np.isfinite(scores)))
            raise InputError(
                f"{FLAG} {spec}: it gave {scores[row]} to the answer {answers[row][:40]!r}; return "
                "finite numbers"
            )
        return scores

    return score


# --- a run's -------------------------------------------------------------------------------------


def load_helpfulness(
    spec: str,
    model: Transformer,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_prompt_tokens: int,
    max_new_tokens: int,
) -> Helpfulness:
    """What a run's setting names.

    Args:
      spec: `likelihood`, a reward model, or FILE.py:FUNCTION.
      model: the policy; a reward model gets its compute dtype and its mesh.
      tokenizer: the policy's.
      prompts: of the run.
      max_prompt_tokens: as for `start_likelihood`.
      max_new_tokens: T.

    Raises:
      InputError: as `load_reward_model`, `by_reward_model` and `function_texts`; or the split path
        in one of several processes.
    """
    if spec == LIKELIHOOD:
        return start_likelihood(tokenizer, max_prompt_tokens)
    if names_function(spec):
        chosen = Helpfulness(score_texts=function_texts(spec))
    else:
        requests = [prompt.text for prompt in prompts if prompt.kind != "harmful"]
        reward_model = load_reward_model(spec, dtype=model.dtype, mesh=model.mesh)
        chosen = by_reward_model(reward_model, tokenizer, requests or [""], max_new_tokens)
    if chosen.score_texts is not None and are_several():
        raise InputError(
            f"{FLAG} {spec}: it scores outside of the compiled step, in one process only: leave "
            "--processes out, or take a reward model with the policy's tokenizer"
        )
    where = "on the host, between two compiled programs" if chosen.score_texts else "in the step"
    print(f"helpfulness: {spec} scores {where}")
    return chosen


def score_on_host(
    score_texts: ScoreTexts,
    tokenizer: Any,
    prompts_at: Callable[[int], Sequence[Prompt]],
    mesh: jax.sharding.Mesh | None = None,
) -> Complete:
    """For `make_split_step`: adds the scores of the harmless prompts' answers to a batch's facts.

    Args:
      score_texts: scores the answers' texts.
      tokenizer: the policy's.
      prompts_at: a step's prompts, the harmful ones first.
      mesh: the run's.

    Returns:
      a function whose result has `scores` `[B']` in its `extras`.
    """

    def complete(step: int, batch: Batch, samples: Rollout) -> Batch:
        prompts = prompts_at(step)
        tokens, mask = fetch((samples.tokens, samples.mask))
        group = len(tokens) // len(prompts)
        requests, answers = [], []
        for row, (ids, kept) in enumerate(zip(tokens, mask, strict=True)):
            prompt = prompts[row // group]
            if prompt.kind == "harmful":
                continue
            text = tokenizer.decode(
                ids[kept], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            requests.append(prompt.text)
            answers.append(answer_span(text))
        scores = score_texts(requests, answers) if requests else np.zeros(0, np.float32)
        facts = dataclasses.replace(batch.extras, scores=to_devices(scores, mesh, rows=True))
        return dataclasses.replace(batch, extras=facts)

    return complete
