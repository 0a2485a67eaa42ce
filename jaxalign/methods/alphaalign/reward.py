"""AlphaAlign's reward as a sum, whole and on the device (arXiv 2507.14987).

    R = R_s                       on a harmful prompt
    R = R_s + r_a + w·R_h         on a benign one

R_s and the constant r_a are `jaxalign.rewards.Safety`, R_h is `jaxalign.rewards.Helpfulness`. The
score that R_h normalises is, offline, ours: the mean log-likelihood per token of the answer given
the bare question under the frozen start model, so an answer that the original model would have
given itself is a good answer. A reward model or a function of the user's takes its place where one
is given (`jaxalign.methods.alphaalign.scorers`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from jaxalign.data import Prompt
from jaxalign.data.templates import Template
from jaxalign.host.errors import InputError
from jaxalign.host.fields import Checked, Weight
from jaxalign.methods.alphaalign.scorers import LIKELIHOOD, load_scoring
from jaxalign.models import Transformer
from jaxalign.records import Params
from jaxalign.rewards import (
    FIRST_SENTENCE_REFUSAL_PATTERN,
    FORMAT_PATTERN,
    REFUSAL_PATTERN,
    STRICT_FORMAT_PATTERN,
    Helpfulness,
    Reasoned,
    ReasonedReward,
    Safety,
    Verifiers,
    safety_verifiers,
)
from jaxalign.rewards.terms import Reward
from jaxalign.runs.recipe import Recipe
from jaxalign.runs.settings import Settings
from jaxalign.runs.start_model import tokenizer_of

_FORMATS = {"strict": STRICT_FORMAT_PATTERN, "loose": FORMAT_PATTERN}
_REFUSALS = {"phrases": REFUSAL_PATTERN, "first-sentence": FIRST_SENTENCE_REFUSAL_PATTERN}


def alphaalign_reward(
    verifiers: Verifiers,
    scorer: Any = None,
    *,
    judgement: ReasonedReward | None = None,
    format_weight: float = 1.0,
    refusal_weight: float = 1.0,
    balance: bool = False,
    helpfulness_weight: float = 1.0,
    normalise: bool = True,
) -> Reward:
    """The reward of AlphaAlign: `Safety`, and `helpfulness_weight` times `Helpfulness`.

    The other arguments are theirs; a scorer of None leaves helpfulness out, and a judgement takes
    the place of `Safety`.
    """
    first = judgement or Safety(verifiers, format_weight, refusal_weight, balance)
    if scorer is None:
        return first
    answers = verifiers if judgement is None else judgement.answers
    return first + helpfulness_weight * Helpfulness(answers, scorer, normalise)


@dataclasses.dataclass(frozen=True)
class Paper:
    """R_s, AlphaAlign's safety reward: the form, and a refusal where it is right."""


@dataclasses.dataclass(frozen=True)
class Rewarded(Checked):
    """Settings of AlphaAlign's reward, beside those of all RL."""

    reward: Paper | Reasoned = Paper()
    """What judgements earn: paper, R_s; reasoned (ours), the parts of a judgement in words."""
    format: Literal["strict", "loose"] = "strict"
    """What is well-formed: strict, nothing but reasoning and answer; loose, the paper's pattern."""
    refusal: Literal["phrases", "first-sentence"] = "phrases"
    """What is a refusal in the reward: the paper's phrases, or our wordings (docs/refusals.md)."""
    helpfulness_weight: Weight = 0.3
    """Weight of the helpfulness reward; 0 leaves its scoring pass out."""
    helpfulness: str = LIKELIHOOD
    """What scores the answers: likelihood, under the start model; a reward model, as a Hugging Face
    sequence-classification folder or hub id; or FILE.py:FUNCTION, which takes requests and answers
    and returns a number for each."""
    relevance: Weight = 0.0
    """With the likelihood: weight of how much likelier the request itself makes an answer than the
    request of another prompt does (ours). Filler, which is as likely after any request, gains
    nothing by it; costs a second scoring pass."""
    normalise: bool = True
    """Normalise helpfulness over a prompt's samples, or over the batch where each prompt has one;
    without, it is the bare score."""

    def check_plan(self) -> None:
        """Refuses a scorer that would have to be loaded."""
        if self.helpfulness_weight and self.helpfulness != LIKELIHOOD:
            raise InputError(
                f"helpfulness={self.helpfulness}: only the start model's likelihood can be "
                "planned: leave --helpfulness out"
            )

    def verifiers(self, tokenizer: Any) -> Verifiers:
        """Those of the format and the refusals that are chosen; raises as `safety_verifiers`."""
        return safety_verifiers(
            tokenizer, pattern=_FORMATS[self.format], refusal=_REFUSALS[self.refusal]
        )

    def recipe(
        self,
        template: Template,
        settings: Settings,
        model: Transformer,
        tokenizer: Any,
        prompts: Sequence[Prompt],
    ) -> Recipe:
        """The reward of a run with RL, and how its prompts are asked.

        Raises:
          InputError: as `load_scoring`, or a tokenizer that can't be verified.
        """
        rl = settings.rl
        assert rl is not None
        with tokenizer_of(settings.start.model):
            verifiers = self.verifiers(tokenizer)
        scoring = None
        if self.helpfulness_weight:
            scoring = load_scoring(
                self.helpfulness,
                model,
                tokenizer,
                prompts,
                max_prompt_tokens=settings.data.max_prompt_tokens,
                max_new_tokens=settings.completions.max_new_tokens,
                relevance=self.relevance,
            )

        judgement = None
        if isinstance(self.reward, Reasoned):
            judgement = self.reward.reward(
                tokenizer,
                verifiers,
                [prompt.text for prompt in prompts],
                format_weight=rl.format_weight,
                balance=rl.balance,
            )

        def reward(start: Params) -> Reward:
            return alphaalign_reward(
                verifiers,
                None if scoring is None else scoring.scorer(start),
                judgement=judgement,
                format_weight=rl.format_weight,
                refusal_weight=rl.refusal_weight,
                balance=rl.balance,
                helpfulness_weight=self.helpfulness_weight,
                normalise=self.normalise,
            )

        return Recipe(
            template,
            reward,
            judge="phrases" if judgement is None else "refusals",
            encode=None if scoring is None else scoring.encode,
        )
