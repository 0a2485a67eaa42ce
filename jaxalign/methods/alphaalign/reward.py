"""AlphaAlign's reward as a sum, whole and on the device (arXiv 2507.14987).

    R = R_s                       on a harmful prompt
    R = R_s + r_a + w·R_h         on a benign one

R_s and the constant r_a are `jaxalign.rewards.Safety`, R_h is `jaxalign.rewards.Helpfulness`. The
score that R_h normalises is, offline, ours: the mean log-likelihood per token of the answer given
the bare question under the frozen start model, so an answer that the original model would have
given itself is a good answer. A reward model or a function of the user's takes its place where one
is given (`jaxalign.methods.alphaalign.scorers`).
"""

from typing import Any

from jaxalign.rewards import Helpfulness, Safety, Verifiers
from jaxalign.rewards.terms import Reward


def alphaalign_reward(
    verifiers: Verifiers,
    scorer: Any = None,
    *,
    format_weight: float = 1.0,
    refusal_weight: float = 1.0,
    balance: bool = False,
    helpfulness_weight: float = 1.0,
    normalise: bool = True,
) -> Reward:
    """The reward of AlphaAlign.

    Args:
      verifiers: format and refusal automata over the vocabulary.
      scorer: what scores answers, as of `Helpfulness`; None leaves helpfulness out.
      format_weight: as of `Safety`.
      refusal_weight: as of `Safety`.
      balance: as of `Safety`.
      helpfulness_weight: w, 1 in the paper.
      normalise: as of `Helpfulness`.
    """
    safety = Safety(verifiers, format_weight, refusal_weight, balance)
    if scorer is None:
        return safety
    return safety + helpfulness_weight * Helpfulness(verifiers, scorer, normalise)
