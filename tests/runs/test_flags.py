"""Flags that choose an objective and its parts: the settings that result, and what is refused."""

import dataclasses
import functools
import json

import pytest

from experiments.alphaalign import PRESETS as PUBLISHED
from experiments.alphaalign import AlphaAlign
from experiments.ascl import PRESETS as CONSULTING
from experiments.cada import PRESETS as CADA
from jaxalign.data import KINDS, builtin_prompts
from jaxalign.engine.baselines import (
    Group,
    InverseFrequency,
    LeaveOneOut,
    PerTerm,
    Shrinkage,
    WholeBatch,
)
from jaxalign.engine.objective import GRPO
from jaxalign.engine.optimizer import AdamW, Cosine, Linear
from jaxalign.engine.penalties import K2, K3, KL
from jaxalign.engine.ppo import PPO
from jaxalign.engine.reductions import (
    Constant,
    Finished,
    Informative,
    SequenceMean,
    SequenceSum,
)
from jaxalign.engine.surrogates import Cispo, Clipped, SoftGated
from jaxalign.host.errors import InputError
from jaxalign.methods.alphaalign.reward import Paper
from jaxalign.rewards import Reasoned
from jaxalign.runs.choices import CHOICES, change, choosable, flag_name, to_json
from jaxalign.runs.collapse import Collapse
from jaxalign.runs.keep import Best, Last
from jaxalign.runs.settings import Data, parse

PRESETS = PUBLISHED | {"demo": AlphaAlign()}
"""The script's, with a demo of all defaults."""


def settings(line, presets=PRESETS):
    """Of a command line such as `alphaalign.py demo --steps 3`, from its preset on."""
    return parse(line.split(), presets, script="alphaalign.py", doc="")


def objective(flags):
    return settings(f"demo {flags}").rl.objective


def preset(objective):
    """A script's preset `mine` with this objective."""
    return {"mine": change(PRESETS["demo"], objective=objective)}


DEMO = GRPO(advantages=Shrinkage())


def demo(**changes):
    """The demo's objective with these parts in place of its own."""
    return dataclasses.replace(DEMO, **changes)


def test_without_flags_it_is_the_preset():
    assert settings("demo") == PRESETS["demo"] and objective("") == DEMO


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (  # DAPO's clip
            "--objective.surrogate clipped --objective.surrogate.high 0.28",
            demo(surrogate=Clipped(high=0.28)),
        ),
        (  # GSPO
            "--objective.surrogate.ratio sequence --objective.aggregation sequence-mean",
            demo(surrogate=Clipped(ratio="sequence"), aggregation=SequenceMean()),
        ),
        (  # Dr.GRPO
            "--objective.advantages group --objective.advantages.no-scale "
            "--objective.aggregation constant",
            GRPO(advantages=Group(scale=False), aggregation=Constant()),
        ),
        ("--objective.surrogate cispo", demo(surrogate=Cispo())),
        (
            "--objective.surrogate cispo --objective.surrogate.max-ratio 4",
            demo(surrogate=Cispo(max_ratio=4.0)),
        ),
        (
            "--objective.surrogate soft-gated --objective.surrogate.temperature-negative 1.1",
            demo(surrogate=SoftGated(temperature_negative=1.1)),
        ),
        ("--objective.surrogate.dual 3", demo(surrogate=Clipped(dual=3.0))),
        ("--objective.kl k3 --objective.kl.coefficient 0.1", demo(kl=K3(0.1))),
        ("--objective.kl kl", demo(kl=KL())),
        ("--objective.aggregation sequence-sum", demo(aggregation=SequenceSum())),
        (
            "--objective.aggregation constant --objective.aggregation.length 512",
            demo(aggregation=Constant(512)),
        ),
        ("--objective.advantages whole-batch", GRPO(advantages=WholeBatch())),
        ("--objective.advantages leave-one-out", GRPO(advantages=LeaveOneOut())),
        ("--objective.advantages.weight 0.25", GRPO(advantages=Shrinkage(0.25))),
        (
            "--objective.adjust per-term --objective.adjust.weights 1 0.5",
            demo(adjust=PerTerm((1.0, 0.5))),
        ),
        (
            "--objective.adjust inverse-frequency --objective.adjust.scope batch "
            "--objective.adjust.max-weight 1.5",
            demo(adjust=InverseFrequency(scope="batch", max_weight=1.5)),
        ),
        ("--objective.keep finished", demo(keep=Finished())),
        ("--objective.keep informative", demo(keep=Informative())),
        (
            "--objective ppo --objective.lambda_ 0.9 --objective.value-clip None",
            PPO(lambda_=0.9, value_clip=None),
        ),
    ],
)
def test_the_objective_that_flags_choose(flags, expected):
    for spelling in (flags, reversed_flags(flags), with_equals(flags), underscored(flags)):
        assert objective(spelling) == expected, spelling


def pairs(flags):
    """Each flag with its values."""
    return [f"--{pair}".split() for pair in flags.removeprefix("--").split(" --")]


def reversed_flags(flags):
    return " ".join(word for pair in reversed(pairs(flags)) for word in pair)


def with_equals(flags):
    """`--flag=value` where there is one value."""
    return " ".join(("=" if len(pair) == 2 else " ").join(pair) for pair in pairs(flags))


def underscored(flags):
    return " ".join(
        word
        for name, *values in pairs(flags)
        for word in ("--" + name[2:].replace("-", "_"), *values)
    )


def test_the_optimizers_constants_and_the_decay():
    chosen = settings("demo --decay cosine --optimizer.b1 0.9 --optimizer.weight-decay=0.1")
    assert chosen.learning.optimizer == AdamW(b1=0.9, weight_decay=0.1)
    assert chosen.learning.decay == Cosine() and settings("demo").learning.decay == Linear()


def test_ppo_keeps_what_it_shares_with_the_objective_before():
    before = "--objective.surrogate.high 0.28 --objective.keep finished"
    chosen = f"{before} --objective.kl k2 --objective.aggregation sequence-mean --objective ppo"
    expected = PPO(Clipped(high=0.28), K2(), SequenceMean(), Finished())
    assert objective(chosen) == objective(f"--objective ppo {chosen}") == expected
    before = GRPO(Group(), SoftGated(), K3(0.3), SequenceSum(), InverseFrequency(), Finished())
    kept = settings("mine --objective ppo", preset(before)).rl.objective
    assert kept == PPO(SoftGated(), K3(0.3), SequenceSum(), Finished())


def test_the_last_of_two_choices_counts():
    assert objective("--objective.surrogate cispo --objective.surrogate clipped") == DEMO


def test_naming_what_is_there_keeps_its_constants():
    """Fields that both have are kept: a preset's coefficient stays, for another estimate too."""
    mine = preset(GRPO(kl=K2(0.3)))
    assert settings("mine --objective.kl k2", mine).rl.objective.kl == K2(0.3)
    assert settings("mine --objective.kl k3", mine).rl.objective.kl == K3(0.3)


def test_none_takes_a_part_out():
    mine = preset(GRPO(kl=K2(0.3)))
    assert settings("mine --objective.kl none", mine).rl.objective == GRPO()
    consults = settings("smollm2", CONSULTING).rl.objective
    assert consults == GRPO(Shrinkage(), adjust=InverseFrequency())
    assert settings("smollm2 --objective.adjust none", CONSULTING).rl.objective == DEMO
    assert settings("smollm2 --objective ppo", CONSULTING).rl.objective == PPO()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--objective.surrogate cliped",
            "--objective.surrogate: unknown value 'cliped'; use one of clipped, cispo, soft-gated",
        ),
        ("--objective=dpo", "--objective: unknown value 'dpo'; use one of grpo, ppo"),
        (
            "--objective.kl k1",
            "--objective.kl: unknown value 'k1'; use one of kl, k2, k3, none",
        ),
        (
            "--objective.advantages none",
            "--objective.advantages: unknown value 'none'; use one of group, whole-batch, "
            "shrinkage, leave-one-out",
        ),
        ("--decay step", "--decay: unknown value 'step'; use one of linear, cosine"),
        ("--steps 3 --objective", "--objective: give the name of what you choose"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(flags, message):
    with pytest.raises(InputError) as caught:
        settings(f"demo {flags}")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "flags",
    [
        "--objective.kl.coefficient 0.1",  # no KL is chosen
        "--objective ppo --objective.advantages group",  # its critic says what rewards are held to
        "--objective ppo --objective.adjust inverse-frequency",
        "--objective.surrogate cispo --objective.surrogate.high 0.3",
        "--objective.surrogate.high much",
    ],
)
def test_a_flag_of_something_else_is_refused(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        settings(f"demo {flags}")
    assert caught.value.code == 2
    assert "--objective." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--objective.surrogate.low 1.5", "objective.surrogate.low=1.5 must be from 0 to 1"),
        ("--objective.surrogate.high=-1", "objective.surrogate.high=-1.0 must be a number, 0 or"),
        ("--objective.surrogate.dual 1", "objective.surrogate.dual=1.0 must be a number above 1"),
        ("--objective.advantages.weight 2", "objective.advantages.weight=2.0 must be from 0 to 1"),
        ("--objective.advantages.ddof 2", "objective.advantages.ddof=2 must be 0 or 1"),
        (
            "--objective.aggregation constant --objective.aggregation.length 0",
            "objective.aggregation.length=0 is too small: at least 1",
        ),
        (
            "--objective.kl k2 --objective.kl.coefficient nan",
            "objective.kl.coefficient=nan must be a number, 0 or above",
        ),
    ],
)
def test_constants_that_cannot_work_are_named(flags, message):
    with pytest.raises(InputError) as caught:
        objective(flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def places():
    """Every place that a flag chooses for, under either objective, and what may stand there."""
    for chosen in ("grpo", "ppo"):
        begun = settings(f"demo --objective {chosen}")
        for choice in choosable(begun):
            for one in (*choice.classes, *([None] if choice.optional else [])):
                yield chosen, choice, one


@pytest.mark.parametrize(("chosen", "choice", "one"), list(places()))
def test_every_class_can_be_chosen(chosen, choice, one):
    name = "none" if one is None else flag_name(one)
    value = settings(f"demo --objective {chosen} --{choice.flag} {name}")
    for part in choice.path:
        value = getattr(value, part)
    assert value is None if one is None else type(value) is one


def test_the_places_have_room_for_all_choices():
    assert {one for _, _, one in places()} - {None, Last, Best, Collapse, Paper, Reasoned} == {
        one for classes in CHOICES.values() for one in classes
    }


def test_the_help_lists_the_choices_and_the_fields_of_what_is_chosen(capsys):
    def shown(flags):
        with pytest.raises(SystemExit) as caught:
            settings(f"demo {flags} --help")
        assert caught.value.code == 0
        return " ".join(capsys.readouterr().out.replace("│", " ").split())

    text = shown("")
    assert "--objective.surrogate {clipped,cispo,soft-gated}" in text
    assert "--objective.kl {kl,k2,k3,none}" in text
    assert "--objective.surrogate.high" in text and "DAPO takes 0.28" in text
    assert "--objective.kl.coefficient" not in text
    text = shown("--objective ppo --objective.kl k3")
    assert "--objective.kl.coefficient" in text and "--objective.value-clip" in text
    assert "--objective.advantages" not in text


def test_the_configuration_says_what_was_chosen():
    chosen = to_json(settings("demo --objective ppo --objective.kl k3 --decay cosine"))
    assert chosen["objective"] == {
        "is": "ppo",
        "surrogate": {"is": "clipped", "low": 0.2, "high": 0.2, "dual": None, "ratio": "token"},
        "kl": {"is": "k3", "coefficient": 0.02},
        "aggregation": {"is": "token-mean"},
        "keep": None,
        "discount": 1.0,
        "lambda_": 0.95,
        "whiten": True,
        "value_clip": 0.2,
    }
    assert chosen["decay"] == {"is": "cosine"} and chosen["optimizer"]["b1"] == 0.5
    assert chosen["optimizer"]["is"] == "adamw"
    assert "is" not in chosen["lora"]  # there is nothing else to choose


def test_an_arm_brings_its_own_flags_and_keeps_what_it_shares(capsys):
    large = settings("qwen3-8b --cap 9 --arm preference", CADA).arm
    assert type(large).__name__ == "Preference" and large.examples_per_step == 64
    assert (large.own.cap, large.own.generated_samples, large.micro_batches) == (9, 8, 8)
    reinforced = settings("qwen3-8b --arm rl --harmful 32", CADA)
    assert reinforced.rl is reinforced.arm and reinforced.rl.updates.micro_batches == 8
    with pytest.raises(SystemExit):
        settings("smollm2 --arm rl --cap 9", CADA)
    assert "--cap" in capsys.readouterr().err


FILE = """
steps: 3
heldout: []
learning-rate: 1e-5
balance: false
objective: {is: ppo, kl: {is: k3, coefficient: 0.1}, value_clip: null, whiten: false}
"""


def test_a_file_of_settings_stands_below_the_flags(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    expected = (
        "demo --heldout --learning-rate 1e-5 --no-balance --objective ppo --objective.kl k3 "
        "--objective.kl.coefficient 0.1 --objective.value-clip None --objective.no-whiten"
    )
    assert settings(f"demo --steps 5 --settings {path}") == settings(f"{expected} --steps 5")
    path.write_text("{label-noise: 0.1, label_noise: 0.2}")
    with pytest.raises(InputError, match="mine.yaml: label_noise is given twice"):
        settings(f"demo --settings={path}")
    path.write_text("balance: 0")
    with pytest.raises(InputError, match="mine.yaml: what is said above is of this file"):
        settings(f"demo --settings={path}")
    path.write_text("stepps: 3")
    with pytest.raises(InputError, match="mine.yaml: stepps is no setting; --help lists them"):
        settings(f"demo --settings={path}")
    path.write_text("- 3")
    with pytest.raises(InputError, match="mine.yaml: must give settings by name"):
        settings(f"demo --settings {path}")
    with pytest.raises(InputError, match="none.yaml: cannot be read"):
        settings("demo --settings none.yaml")


@pytest.mark.parametrize(
    ("presets", "flags"),
    [
        (PRESETS, "demo --objective ppo --mesh 1 2 1 --stop a b --seed 3"),
        (CADA, "qwen3-8b --arm rl --objective.kl none"),
        (CADA, "smollm2 --arm preference --code mine.yaml"),
        (CONSULTING, "smollm2 --cold-start none"),
        (CONSULTING, "qwen3-8b --cold-start.rounds 3 --optimizer.eps 1e-7"),
    ],
)
def test_a_runs_config_gives_its_settings_again(presets, flags, tmp_path):
    run = settings(flags, presets)
    facts = {"run_format": 4, "facts": {"rules": {"a": "b"}}}
    (tmp_path / "config.json").write_text(json.dumps(to_json(run) | facts))
    for other in presets:
        assert settings(f"{other} --settings {tmp_path / 'config.json'}", presets) == run


@pytest.mark.parametrize(
    ("presets", "run", "flags", "expected"),
    [
        (PRESETS, "demo --objective.kl k2 --objective.kl.coefficient 1", "--objective.kl none", ""),
        (PRESETS, "demo --objective ppo --seed 3", "--objective grpo", "--objective grpo --seed 3"),
        (CONSULTING, "smollm2 --cold-start.cap 3", "--cold-start none", "--cold-start none"),
        (CADA, "smollm2 --row-length 512", "--arm rl", "--arm rl"),
        (CADA, "smollm2 --arm rl --harmful 3", "--arm reasoning", ""),
    ],
)
def test_another_choice_goes_over_a_file(presets, run, flags, expected, tmp_path):
    path, preset = tmp_path / "config.json", run.split()[0]
    path.write_text(json.dumps(to_json(settings(run, presets))))
    found = settings(f"{preset} --settings {path} {flags}", presets)
    if "ppo" in run:  # which has no baseline to go back to
        expected += " --objective.advantages group"
    assert found == settings(f"{preset} {expected}", presets)


def test_a_plain_function_in_a_preset_can_be_replaced_by_a_flag():
    mine = preset(GRPO(advantages=lambda rewards: rewards))
    assert settings("mine --objective.advantages group", mine).rl.objective == GRPO()


def test_values_that_belong_together_change_together():
    """15 prompts go in three parts, and not in the two that there were."""
    halves = change(PRESETS["demo"], minibatches=2)
    assert change(halves, harmful=7, minibatches=3).rl.updates.minibatches == 3
    with pytest.raises(ValueError, match="AlphaAlign has no minibatch"):
        change(halves, minibatch=3)


def test_parts_of_the_settings_are_not_named_in_a_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("loop: {steps: 3}\n")
    with pytest.raises(InputError, match="mine.yaml: loop: leave the name out, and write what is"):
        settings(f"demo --settings {tmp_path / 'mine.yaml'}")


def test_seeds_are_not_negative():
    with pytest.raises(InputError, match=r"seeds=\(-1, 0\) must be whole numbers, each at least 0"):
        settings("demo --seeds -1 0")


def bounded(logps, old_logps, advantages, *, mask=None):
    """A surrogate of one's own: only a name, whatever process says it."""


class Bounded:
    """The same as an object, which says nothing of itself."""

    __call__ = staticmethod(bounded)


def test_a_function_in_the_settings_goes_by_its_name():
    for given, name in [
        (bounded, f"{__name__}.bounded"),
        (functools.partial(bounded, mask=None), [f"{__name__}.bounded", {"mask": None}]),
        (Bounded(), f"{__name__}.Bounded"),
    ]:
        run = change(PRESETS["demo"], objective=GRPO(surrogate=given))
        assert to_json(run)["objective"]["surrogate"] == name


def test_a_short_evaluation_asks_whole_triples():
    """Two of each kind: those that share a frame stand at the same place of their kinds."""
    asked = Data(heldout_prompts=2).load_heldout()
    assert [prompt.kind for prompt in asked] == [kind for kind in KINDS for _ in range(2)]
    assert len({prompt.pair for prompt in asked}) == 2
    assert len(Data().load_heldout()) == len(builtin_prompts("heldout"))
