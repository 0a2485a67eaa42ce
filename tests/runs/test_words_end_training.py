"""A chat template ends turns in words: they end completions, and rewards do not read them."""

from pathlib import Path

import jax
import numpy as np
import optax
from chained_model import CHAINED, SPOKEN, chained_model, successors

from experiments.alphaalign import AlphaAlign
from jaxalign.data.prompts import Prompt
from jaxalign.data.templates import bare_messages
from jaxalign.engine import Frozen, init_state, make_step
from jaxalign.methods.alphaalign.reward import alphaalign_reward
from jaxalign.rewards import safety_verifiers
from jaxalign.runs.recipe import Recipe
from jaxalign.runs.reinforcement import make_reinforcement
from jaxalign.runs.settings import RL, Completions

TEXT = ["<safety_reasoning>", "Fine.", "</safety_reasoning>\n<answer>", "Yes.", "</answer>"]


def test_a_completion_ends_by_words_and_its_reward_is_that_of_the_text_without_them(
    tmp_path: Path,
) -> None:
    lm = chained_model([":", *TEXT, "\n\nUs", "er:", "x"], template=SPOKEN)
    prompts = [Prompt("0", "Forge it?", "harmful", "fraud"), Prompt("1", "Hi?", "benign", "")]
    rl = RL(harmful=1, benign=1, lookalike=0, samples_per_prompt=2)
    settings = AlphaAlign(tmp_path, completions=Completions(max_new_tokens=12), rl=rl)
    reward = alphaalign_reward(safety_verifiers(lm.tokenizer))
    recipe = Recipe(bare_messages, lambda start: reward)
    work = make_reinforcement(settings, lm.model, lm.tokenizer, prompts, recipe)
    optimizer = optax.sgd(0.1)
    step = make_step(CHAINED, optimizer, sampling=work.sampling)
    state = init_state(successors(lm), optimizer)
    _, result = step(state, work.batches(0), jax.random.key(0), Frozen(reward))
    tokens, mask = np.asarray(result.samples.tokens), np.asarray(result.samples.mask)
    learned = [lm.text(row[there]) for row, there in zip(tokens, mask, strict=True)]
    assert learned == ["".join(TEXT) + "\n\nUser:"] * 4 and result.samples.finished.all()
    assert result.score.rewards.tolist() == [[1, 1], [2, 2]]  # format, and the answer to "Hi?"
    for row in work.batches.transcripts(0, result):
        assert row["completion"] == "".join(TEXT) and row["well_formed"]
