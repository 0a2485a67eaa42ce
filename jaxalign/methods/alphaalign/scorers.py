"""Who scores a run's answers for R_h: the start model, a reward model, or a Python function.

    --helpfulness likelihood          `jaxalign.rewards.Likelihood`
    --helpfulness MODEL               a reward model
    --helpfulness FILE.py:FUNCTION    (requests, answers) -> one number for each

A reward model that shares the policy's tokenizer scores inside the compiled step, from the tokens
as they were sampled. One with another tokenizer, and a function, score on the host, between two
compiled programs: answers become text, and text a score.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign.answers.asking import LanguageModel
from jaxalign.data.prompts import Prompt
from jaxalign.data.templates import (
    bare_messages,
    encode_exchange,
    encode_frame,
    encode_requests,
    pad,
)
from jaxalign.host.errors import InputError
from jaxalign.host.processes import are_several
from jaxalign.host.user_functions import ScoreTexts, load_function, names_function, scoring_texts
from jaxalign.models import Transformer, load_pretrained, sequence_scores
from jaxalign.records import Params
from jaxalign.rewards import Likelihood, RewardModel, split
from jaxalign.rewards.terms import HostValues
from jaxalign.runs.facts import prompts_of
from jaxalign.text.chat_template import run_date
from jaxalign.text.encoding import decode

FLAG = "--helpfulness"
LIKELIHOOD = "likelihood"


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What scores a run's answers, inside the step or on the host.

    Attributes:
      encode: inside the step: prompts to questions `[N, Q]` and their mask; Q is the same for all
        batches. The likelihood's have the conversation; a reward model reads the request alone.
        None on the host.
      scorer: the start parameters to what `jaxalign.rewards.Helpfulness` takes.
    """

    encode: Callable[[Sequence[Prompt]], tuple[np.ndarray, np.ndarray]] | None
    scorer: Callable[[Params], Any]


def start_likelihood(
    model: Transformer, tokenizer: Any, max_prompt_tokens: int, relevance: float = 0.0
) -> Scoring:
    """The likelihood under the policy's start, which needs nothing else.

    `max_prompt_tokens` is the longest request, beyond what all chats begin with; `relevance` is as
    of `Likelihood`.
    """
    width = len(encode_requests(tokenizer, bare_messages, ["?"])[0]) + max_prompt_tokens

    def encode(prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray]:
        opening, rows = encode_requests(tokenizer, bare_messages, [x.asked for x in prompts])
        return pad([[*opening, *row] for row in rows], width)

    return Scoring(encode, lambda start: Likelihood.of(model, start, relevance))


# --- reward models -------------------------------------------------------------------------------


def load_reward_model(
    name: str, *, dtype: Any, mesh: jax.sharding.Mesh | None = None
) -> LanguageModel:
    """Loads a Hugging Face sequence-classification model with one label and a chat template.

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
    return LanguageModel(model, params, tokenizer).cast()


_PROBES = ("Yes.", "I'm sorry, no.", "1. Mix", "über", "'quoted'", "(so)", "$5")


def shares_tokenizer(theirs: Any, policys: Any) -> bool:
    """Whether a reward model can read the policy's answers as the tokens they are.

    Both must have the same tokens with the same ids, and the reward model's template must not
    tokenize an answer's first or last word together with what stands around it.
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
    name: str, lm: LanguageModel, tokenizer: Any, prompts: Sequence[Prompt], max_new_tokens: int
) -> Scoring:
    """A reward model's score: inside the step if it shares the policy's `tokenizer`.

    The width of the arrays is that of the run's longest harmless prompt; `name` is what the user
    called the model.

    Raises:
      InputError: inside the step, if the longest request and an answer pass its last position.
    """
    theirs = lm.tokenizer
    if not shares_tokenizer(theirs, tokenizer):
        return on_host(reward_model_texts(name, lm), tokenizer, prompts)
    requests = [prompt.text for prompt in prompts if prompt.kind != "harmful"] or [""]
    frames = [encode_frame(theirs, request) for request in requests]
    width, closing = max(len(before) for before, _ in frames), frames[0][1]
    positions = width + max_new_tokens + len(closing)
    if positions > lm.model.config.max_positions:
        raise InputError(
            f"{FLAG} {name}: request and max_new_tokens={max_new_tokens} take {positions} "
            f"positions, it has {lm.model.config.max_positions}: lower max_new_tokens or shorten "
            "the prompts"
        )

    def encode(prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray]:
        return pad([encode_frame(theirs, prompt.text)[0] for prompt in prompts], width)

    scorer = RewardModel(lm.params, lm.model, tuple(closing))
    return Scoring(encode, lambda start: scorer)


_BUCKET = 64  # widths are multiples of it, so that few programs are compiled


def reward_model_texts(name: str, lm: LanguageModel) -> ScoreTexts:
    """Scores of texts, which the reward model's own tokenizer and template turn into ids."""
    run = jax.jit(functools.partial(sequence_scores, lm.model))
    limit = lm.model.config.max_positions

    def score(requests: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        pairs = zip(requests, answers, strict=True)
        rows = [encode_exchange(lm.tokenizer, *pair) for pair in pairs]
        longest = max(map(len, rows))
        if longest > limit:
            raise InputError(
                f"{FLAG} {name}: a request and its answer take {longest} positions, "
                f"it has {limit}: lower max_new_tokens or shorten the prompts"
            )
        tokens, mask = pad(rows, min(limit, -(-longest // _BUCKET) * _BUCKET))
        scores: np.ndarray = jax.device_get(run(lm.params, tokens, mask))[:, 0]
        return scores

    return score


# --- a run's -------------------------------------------------------------------------------------


def load_scoring(
    spec: str,
    model: Transformer,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_prompt_tokens: int,
    max_new_tokens: int,
    relevance: float = 0.0,
) -> Scoring:
    """What a run's setting names: `likelihood`, a reward model, or FILE.py:FUNCTION.

    A reward model gets the policy's compute dtype and mesh. `max_prompt_tokens` is the longest
    request, beyond what all chats begin with; `relevance` is the likelihood's.

    Raises:
      InputError: as `load_reward_model`, `by_reward_model` and `load_function`; or a score on the
        host in one of several processes.
    """
    if spec == LIKELIHOOD:
        return start_likelihood(model, tokenizer, max_prompt_tokens, relevance)
    if names_function(spec):
        score = scoring_texts(load_function(spec, FLAG), f"{FLAG} {spec}")
        chosen = on_host(score, tokenizer, prompts)
    else:
        lm = load_reward_model(spec, dtype=model.dtype, mesh=model.mesh)
        lm.tokenizer.template_date = run_date(tokenizer)
        chosen = by_reward_model(spec, lm, tokenizer, prompts, max_new_tokens)
    if chosen.encode is None and are_several():
        raise InputError(
            f"{FLAG} {spec}: it scores outside of the compiled step, in one process only: leave "
            "--processes out, or take a reward model with the policy's tokenizer"
        )
    where = "in the step" if chosen.encode else "on the host, between two compiled programs"
    print(f"helpfulness: {spec} scores {where}")
    return chosen


def on_host(score_texts: ScoreTexts, tokenizer: Any, prompts: Sequence[Prompt]) -> Scoring:
    """Scores the harmless prompts' answers between two compiled programs.

    `prompts` are the run's, as `PromptFacts.index` counts them.
    """

    def score(batch: Any, samples: Any) -> np.ndarray:
        asked = prompts_of(batch, samples, prompts)
        rows = [row for row, prompt in enumerate(asked) if prompt.kind != "harmful"]
        read = samples.readable(samples.mask)
        texts = [decode(tokenizer, samples.tokens[row], read[row]) for row in rows]
        if not rows:
            return np.zeros(0, np.float32)
        return score_texts([asked[row].text for row in rows], [split(t).answer for t in texts])

    return Scoring(None, lambda start: HostValues(score))
