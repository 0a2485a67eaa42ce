r"""AlphaAlign (arXiv 2507.14987): safety reward + helpfulness reward, one compiled step.

    python experiments/alphaalign.py demo
    python experiments/alphaalign.py demo --run runs/mine --steps 100 --learning-rate 2e-5
    python experiments/alphaalign.py demo --run runs/mine --steps 100 --learning-rate 2e-5 --resume
    python experiments/alphaalign.py demo --run runs/ppo --objective ppo --epochs 2    # PPO
    python experiments/alphaalign.py demo --run runs/gspo --objective.surrogate.ratio sequence \
        --objective.aggregation sequence-mean                                              # GSPO
    python experiments/alphaalign.py demo --run runs/judged --helpfulness mine.py:score
    python experiments/alphaalign.py demo --run runs/best --evaluate-every 10 --keep best
    python experiments/alphaalign.py demo --run runs/short --add-reward mine.py:short=0.1

The paper trains by PPO. The presets hold rewards to a mean instead (`WholeBatch`, `Shrinkage`): a
critic is a second model in memory and a second gradient.

Presets (the first word): what each is for and the hardware it is meant for stand at its definition
below. Everything can be overridden by a flag; `--help` after the preset lists them.

The run folder gets report.html and what it shows: config.json, before/ and after/ (evaluations,
for `jaxalign compare` too), metrics.jsonl, samples.jsonl, summary.json, plots; and tensorboard/,
checkpoints/, model/ (opens in transformers).
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from jaxalign.data import Prompt
from jaxalign.data.prompts import mislabel
from jaxalign.data.templates import alphaalign_messages, bare_messages
from jaxalign.engine import GRPO, WholeBatch
from jaxalign.engine.optimizer import AdamW
from jaxalign.engine.step import Updates
from jaxalign.host.fields import Share
from jaxalign.methods.alphaalign.reward import Rewarded
from jaxalign.models import Transformer
from jaxalign.rewards import Reasoned
from jaxalign.runs.choices import FLAT, change
from jaxalign.runs.collapse import Collapse
from jaxalign.runs.keep import Best
from jaxalign.runs.presets import large
from jaxalign.runs.recipe import Recipe
from jaxalign.runs.script import main_of
from jaxalign.runs.settings import RL, Settings


@dataclasses.dataclass(frozen=True)
class AlphaAlign(Settings):
    """Settings of a run."""

    run: Path = Path("runs/alphaalign")
    """Run folder to write."""
    template: Literal["examples", "bare"] = "examples"
    """examples: instruction and five worked examples as chat turns, which small models need."""
    label_noise: Share = 0.0
    """Share of the training prompts whose label, harmful or not, is wrong: for the ablation."""
    rl: Annotated[RL, FLAT] = RL()
    """How it learns from rewards."""
    rewarded: Annotated[Rewarded, FLAT] = Rewarded()
    """What for, beside safety."""

    def load_prompts(self) -> list[Prompt]:
        """The training prompts, with the labels that the run is to learn from."""
        return mislabel(super().load_prompts(), self.label_noise, seed=self.seed)


# Judgements in words, answers that their own request makes likely, and many labels rather than many
# samples of each: docs/demo.md says what each is for and what was tried.
_DEMO = change(
    AlphaAlign(),
    run=Path("runs/demo"),
    reward=Reasoned(),
    relevance=1.0,
    objective=GRPO(advantages=WholeBatch()),
    updates=Updates(packed=True),
    harmful=32,
    benign=16,
    lookalike=16,
    samples_per_prompt=1,
    max_new_tokens=80,
    heldout_prompts=60,
    steps=60,
    learning_rate=5e-5,
    warmup_steps=4,
    decay_steps=30,
    optimizer=AdamW(b1=0.8, b2=0.99),
)
PRESETS: dict[str, AlphaAlign] = {
    # SmolLM2-135M on two CPU cores; README.md has the measured time and results.
    "demo": _DEMO,
    # The same for four times as long: hours on two CPU cores, minutes on a GPU; not yet run.
    "headline": change(
        _DEMO,
        run=Path("runs/headline"),
        steps=240,
        decay_steps=200,
        heldout_prompts=0,
        evaluate_every=50,
        validation_prompts=24,
        keep=Best(),
        guard=Collapse(),
    ),
    # The same architecture with 1.7B parameters, on one 80 GB accelerator; ours, not yet run.
    "smollm2-1.7b": change(
        AlphaAlign(),
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
    AlphaAlign(),
    "alphaalign",
    steps=200,
    decay_steps=0,
    learning_rate=1e-6,
    critic_learning_rate=1e-5,
    samples_per_prompt=8,
    helpfulness_weight=1.0,
)
# AlphaAlign-Zero, the paper's ablation: the safety reward alone, on a base model; not run either.
PRESETS |= _LARGE | {
    "zero": change(
        _LARGE["qwen2.5-3b"],
        run=Path("runs/alphaalign-zero"),
        model="Qwen/Qwen2.5-3B",
        helpfulness_weight=0.0,
    )
}


def build(
    settings: AlphaAlign, model: Transformer, tokenizer: Any, prompts: list[Prompt]
) -> Recipe:
    """The reward and how prompts are asked."""
    template = alphaalign_messages if settings.template == "examples" else bare_messages
    return settings.rewarded.recipe(template, settings, model, tokenizer, prompts)


main = main_of("alphaalign", PRESETS, build, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
