"""AlphaAlign (arXiv 2507.14987): safety reward + helpfulness reward, one compiled step.

    python experiments/alphaalign.py demo
    python experiments/alphaalign.py demo --run runs/mine --steps 100 --learning-rate 2e-5
    python experiments/alphaalign.py demo --run runs/mine --steps 100 --learning-rate 2e-5 --resume
    python experiments/alphaalign.py demo --run runs/ppo --objective ppo --epochs 2    # PPO
    python experiments/alphaalign.py demo --run runs/gspo --objective.surrogate.ratio sequence \
        --objective.aggregation sequence-mean                                              # GSPO
    python experiments/alphaalign.py demo --run runs/judged --helpfulness mine.py:score
    python experiments/alphaalign.py demo --run runs/short --add-reward mine.py:short=0.1

The paper trains by PPO. The presets hold rewards to a mean instead (`Shrinkage`): a critic is a
second model in memory and a second gradient.

Presets (the first word): what each is for and the hardware it is meant for stand at its definition
below. Everything can be overridden by a flag; `--help` after the preset lists them.

The run folder gets report.html and what it shows: config.json, before/ and after/ (evaluations,
for `jaxalign compare` too), metrics.jsonl, samples.jsonl, summary.json, plots; and tensorboard/,
checkpoints/, model/ (opens in transformers).
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from jaxalign.data import Prompt
from jaxalign.data.prompts import mislabel
from jaxalign.data.templates import alphaalign_messages, bare_messages
from jaxalign.host.errors import InputError
from jaxalign.methods.alphaalign.reward import alphaalign_reward
from jaxalign.methods.alphaalign.scorers import LIKELIHOOD, load_scoring
from jaxalign.models import Transformer
from jaxalign.records import Params
from jaxalign.rewards import (
    FIRST_SENTENCE_REFUSAL_PATTERN,
    FORMAT_PATTERN,
    REFUSAL_PATTERN,
    STRICT_FORMAT_PATTERN,
    Reward,
    safety_verifiers,
)
from jaxalign.runs.experiment import Recipe, tokenizer_of
from jaxalign.runs.presets import large
from jaxalign.runs.script import main_of
from jaxalign.runs.settings import RLSettings, Share, Weight


@dataclasses.dataclass(frozen=True)
class AlphaAlign(RLSettings):
    """Settings of a run."""

    run: Path = Path("runs/alphaalign")
    """Run folder to write."""
    template: Literal["examples", "bare"] = "examples"
    """examples: instruction and two worked examples as chat turns, which small models need."""
    format: Literal["strict", "loose"] = "strict"
    """What is well-formed: strict, nothing but reasoning and answer; loose, the paper's pattern."""
    refusal: Literal["phrases", "first-sentence"] = "phrases"
    """What is a refusal in the reward: the paper's phrases, or our wordings (docs/refusals.md)."""
    label_noise: Share = 0.0
    """Share of the training prompts whose label, harmful or not, is wrong: for the ablation."""
    helpfulness_weight: Weight = 0.3
    """Weight of the helpfulness reward; 0 leaves its scoring pass out."""
    helpfulness: str = LIKELIHOOD
    """What scores the answers: likelihood, under the start model; a reward model, as a Hugging Face
    sequence-classification folder or hub id; or FILE.py:FUNCTION, which takes requests and answers
    and returns a number for each."""
    normalise: bool = True
    """Normalise helpfulness over a prompt's samples; without, it is the bare score."""

    def load_prompts(self) -> list[Prompt]:
        """The training prompts, with the labels that the run is to learn from."""
        return mislabel(super().load_prompts(), self.label_noise, seed=self.seed)

    def check_plan(self) -> None:
        """Refuses a scorer that would have to be loaded."""
        if self.helpfulness_weight and self.helpfulness != LIKELIHOOD:
            raise InputError(
                f"helpfulness={self.helpfulness}: only the start model's likelihood can be "
                "planned: leave --helpfulness out"
            )


PRESETS: dict[str, AlphaAlign] = {
    # SmolLM2-135M on two CPU cores; README.md has the measured time and results.
    "demo": AlphaAlign(run=Path("runs/demo")),
    # The same architecture with 1.7B parameters, on one 80 GB accelerator; ours, not yet run.
    "smollm2-1.7b": AlphaAlign(
        run=Path("runs/smollm2-1.7b"),
        model="HuggingFaceTB/SmolLM2-1.7B-Instruct",
        samples_per_prompt=8,
        max_prompt_tokens=256,
        max_new_tokens=256,
        steps=200,
        decay_steps=150,
        learning_rate=2e-6,
        micro_batches=4,
    ),
}
# The papers' models on v5e:4x4; not run, `jaxalign plan` says what they take (docs/scale.md).
# Batch, samples and learning rate are AlphaAlign's.
_LARGE = large(
    AlphaAlign,
    "alphaalign",
    steps=200,
    decay_steps=0,
    learning_rate=1e-6,
    critic_learning_rate=1e-5,
    helpfulness_weight=1.0,
)
# AlphaAlign-Zero, the paper's ablation: the safety reward alone, on a base model; not run either.
PRESETS |= _LARGE | {
    "zero": dataclasses.replace(
        _LARGE["qwen2.5-3b"],
        run=Path("runs/alphaalign-zero"),
        model="Qwen/Qwen2.5-3B",
        helpfulness_weight=0.0,
    )
}


FORMATS = {"strict": STRICT_FORMAT_PATTERN, "loose": FORMAT_PATTERN}
REFUSALS = {"phrases": REFUSAL_PATTERN, "first-sentence": FIRST_SENTENCE_REFUSAL_PATTERN}


def build(
    settings: AlphaAlign, model: Transformer, tokenizer: Any, prompts: list[Prompt]
) -> Recipe:
    """The reward and how prompts are asked."""
    with tokenizer_of(settings.model):
        verifiers = safety_verifiers(
            tokenizer, pattern=FORMATS[settings.format], refusal=REFUSALS[settings.refusal]
        )
    scoring = None
    if settings.helpfulness_weight:
        scoring = load_scoring(
            settings.helpfulness,
            model,
            tokenizer,
            prompts,
            max_prompt_tokens=settings.max_prompt_tokens,
            max_new_tokens=settings.max_new_tokens,
        )

    def reward(start: Params) -> Reward:
        return alphaalign_reward(
            verifiers,
            None if scoring is None else scoring.scorer(start),
            format_weight=settings.format_weight,
            refusal_weight=settings.refusal_weight,
            balance=settings.balance,
            helpfulness_weight=settings.helpfulness_weight,
            normalise=settings.normalise,
        )

    template = alphaalign_messages if settings.template == "examples" else bare_messages
    return Recipe(template, reward, encode=None if scoring is None else scoring.encode)


main = main_of("alphaalign", PRESETS, build, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
