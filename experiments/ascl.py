"""ASCL with IFPO (arXiv 2602.13562): the model decides when to consult the safety rules.

    python experiments/ascl.py smollm2
    python experiments/ascl.py smollm2 --run runs/grpo --objective.adjust none
    python experiments/ascl.py smollm2 --run runs/zero --cold-start none    # ASCL-ZS's start
    python experiments/ascl.py smollm2 --run runs/mine --rules mine.yaml

To consult, the model writes <consult>category</consult>; the rule's text follows as tokens that are
read and not trained on. A cold start fine-tunes on its own traces that turned out right, half of
which begin with a call that was given; then RL rewards outcome and format, and nothing for
consulting as such. IFPO rebalances the advantages of samples that consulted and of samples that did
not; `--objective.adjust none` is GRPO.

Presets (the first word) stand below with the hardware they are meant for. Every setting is a flag;
`--help` after the preset lists them. The run folder is as experiments/alphaalign.py has it, and
gets traces.json, cold_start/ (the fine-tuned model) and after_cold_start/ (its evaluation).
"""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, Literal

from jaxalign.data import Prompt, RuleBook, builtin_rules, load_rules
from jaxalign.data.templates import consulting_messages
from jaxalign.engine.baselines import InverseFrequency, Shrinkage
from jaxalign.engine.objective import GRPO
from jaxalign.host.fields import Count
from jaxalign.methods.ascl.consulting import Consulting
from jaxalign.methods.ascl.first_stage import COLD_START_FOLDER, ColdStart, cold_start
from jaxalign.models import Transformer
from jaxalign.rewards import CONSULTING_FORMAT_PATTERN, Safety, safety_verifiers
from jaxalign.runs.choices import FLAT
from jaxalign.runs.presets import large
from jaxalign.runs.recipe import Recipe
from jaxalign.runs.script import main_of
from jaxalign.runs.settings import RL, Completions, Settings
from jaxalign.runs.start_model import tokenizer_of
from jaxalign.sampling import consultation, rule_answer


@dataclasses.dataclass(frozen=True)
class Ascl(Settings):
    """Settings of a run."""

    run: Path = Path("runs/ascl")
    """Run folder to write."""
    rules: Path | None = None
    """Rule book to consult (YAML, see jaxalign.data.load_rules); by default our own."""
    template: Literal["examples", "bare"] = "examples"
    """examples: instruction and four worked examples, which small models need; bare: the
    instruction alone."""
    max_calls: Count = 1
    """Consultations that are answered in one completion; further ones are plain text."""
    completions: Annotated[Completions, FLAT] = Completions(max_new_tokens=160)
    """How completions are drawn, rules included."""
    rl: Annotated[RL, FLAT] = RL(objective=GRPO(Shrinkage(), adjust=InverseFrequency()))
    """How it learns from rewards; --objective.adjust none leaves IFPO out."""
    cold_start: ColdStart | None = ColdStart()
    """What is learned before from traces of its own; none leaves it out."""

    @property
    def first_stage(self) -> str | None:
        """The fine-tuned start model."""
        return None if self.cold_start is None else COLD_START_FOLDER

    def check(self) -> None:
        """Also that there are rules, before the model is read."""
        super().check()
        self.rule_book()

    def rule_book(self) -> RuleBook:
        """The rules to consult."""
        return builtin_rules() if self.rules is None else load_rules(self.rules)


PRESETS: dict[str, Ascl] = {"smollm2": Ascl()}  # SmolLM2-135M on two CPU cores
# 3B- and 8B-class models, on v5e:4x4; ours, not run. `jaxalign plan` says what they take.
PRESETS |= large(
    Ascl(cold_start=ColdStart(rounds=64, cap=200, learning_rate=5e-6)),
    "ascl",
    template="bare",
    max_calls=3,
    steps=200,
    decay_steps=150,
    learning_rate=1e-6,
    samples_per_prompt=8,
    objective=GRPO(adjust=InverseFrequency()),
    balance=False,
)


def build(settings: Ascl, model: Transformer, tokenizer: Any, prompts: list[Prompt]) -> Recipe:
    """The tool, the reward, how prompts are asked, and the cold start."""
    book = settings.rule_book()
    with tokenizer_of(settings.start.model):
        verifiers = safety_verifiers(tokenizer, pattern=CONSULTING_FORMAT_PATTERN)
        tool = consultation(book.rules, tokenizer, max_calls=settings.max_calls)
    template = consulting_messages(
        list(book.rules),
        functools.partial(rule_answer, book.rules),
        examples=settings.template == "examples",
    )
    rl, stage = settings.rl, settings.cold_start
    reward = Consulting(Safety(verifiers, rl.format_weight, rl.refusal_weight, rl.balance))
    start = functools.partial(cold_start, stage=stage, verifiers=verifiers, rules=book.rules)
    return Recipe(
        template,
        lambda params: reward,
        cold_start=None if stage is None else start,
        tool=tool,
        facts={"rules_version": book.version, "rule_texts": dict(book.rules)},
    )


main = main_of("ascl", PRESETS, build, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
