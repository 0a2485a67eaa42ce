"""The plan of a step: what it says a device holds and sends, against a step that runs."""

import importlib.util
import json
import math
from pathlib import Path

import jax
import pytest
from eight_devices import run_on_eight_devices
from jax.sharding import AbstractMesh

from jaxalign.cli import main
from jaxalign.commands.pages import load_page
from jaxalign.host.errors import InputError
from jaxalign.models.files.architectures import KNOWN, read_architecture
from jaxalign.models.layout import abstract_params, parameter_shardings
from jaxalign.models.sharding import AXES, make_mesh
from jaxalign.planning import chips, scripts
from jaxalign.planning.compiled_step import DoesNotFit, Phase, Plan, _excess
from jaxalign.planning.scripts import read_settings
from jaxalign.planning.stand_in import stand_in_tokenizer
from jaxalign.runs.presets import LARGE

ALPHAALIGN = str(Path(__file__).parents[2] / "experiments" / "alphaalign.py")

DEMO = [ALPHAALIGN, "--preset", "demo", "--topology", "v5e:2x2"]

_PLAN = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jaxalign.commands.pages import load_page
from jaxalign.data import load_all
from jaxalign.models import load_pretrained
from jaxalign.models.sharding import make_mesh
from jaxalign.planning import plan_step
from jaxalign.planning.scripts import read_settings
from jaxalign.runs.reinforcement import make_reinforcement
from jaxalign.runs.start_model import frozen_base

def bytes_read(plan, weights, sizes, rows, heads, context):
    # bf16 weights, keys and values of the context, and half of the completions' own
    position = 2 * 2 * 2 * heads * 8
    return 8 * (2 * weights / sizes[2] + position * (context + rows * 8 / 2))

script, folder = sys.argv[1:]
flags = "--harmful 2 --benign 1 --lookalike 1 --samples-per-prompt 4 --max-new-tokens 8"
flags += " --objective.kl k2 --objective.kl.coefficient 0.1"
flags += f" --micro-batches 2 --model {folder}"
module = load_page(script)
ppo = " --objective ppo --minibatches 2 --micro-batches 1"
for sizes, more in (((1, 8, 1), ""), ((2, 2, 2), ppo)):
    settings = read_settings(module, "demo", (flags + more).split())
    mesh = make_mesh(*sizes)
    model, params, tokenizer = load_pretrained(folder, mesh=mesh)
    given = settings, model, tokenizer, load_all(settings.data.prompts)
    work = make_reinforcement(*given, module.build(*given))
    plan = plan_step(work, model, work.batches(0))

    def on_first(tree):
        arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
        return sum(x.addressable_shards[0].data.nbytes for x in arrays)

    state = work.start(params)
    assert (state.params.keys() == {"policy", "critic"}) == bool(more)
    frozen = work.frozen(params)
    _, helpfulness = frozen.reward.terms
    assert plan.memory["parameters"] == on_first(state.params)
    assert plan.memory["optimizer"] == on_first(state.opt_state)
    assert plan.memory["frozen"] == on_first((helpfulness.reward.scorer.params, frozen.base))
    assert plan.memory["temporary"] > plan.within["cache"]
    weights = sum(x.size for x in jax.tree.leaves(params))
    assert abs(plan.within["decoding_weights"] / (2 * weights / sizes[2]) - 1) < 0.01
    rows, heads = 4 * 4 // (sizes[0] * sizes[1]), 2 // sizes[2]
    prefix = work.batches(0).prefix.size
    prompts = 4 * 64 / min(4, sizes[0] * sizes[1]) if sizes[0] * sizes[1] <= 4 else 4 * 64
    assert plan.within["cache"] == 2 * 2 * 2 * heads * 8 * (rows * 8 + prompts + prefix)

    total = lambda phase: 8 * phase.flops
    assert total(plan.sampling) > 0 and total(plan.update) > total(plan.sampling)
    read = bytes_read(plan, weights, sizes, rows, heads, prompts + prefix)
    assert abs(plan.sampling.traffic / read - 1) < 0.01
    moved = 2 * (2 * plan.memory["parameters"] + plan.memory["optimizer"])
    assert plan.update.traffic == moved

    # The loop that adds a token gathers no weights: not even one layer's in bfloat16.
    assert plan.largest_gather_of_a_token < 2 * 9216, plan.decoding_loop
    assert plan.decoding_loop or sizes[2] == 1
    state, result = work.step(state, work.batches(0), jax.random.key(0), frozen)
    assert int(state.step) == 1 and np.isfinite(result.metrics["loss"])
    print("x".join(map(str, sizes)), "as planned")

# Adapters on a base in 8 bits, which is the reference and what scores, too; and the least memory
# of full updates.
for name, more in (
    ("lora", "--lora.rank 2 --lora.base int8"),
    ("little", "--optimizer adafactor --param-dtype bfloat16"),
):
    settings = read_settings(module, "demo", [*flags.split(), *more.split()])
    mesh = make_mesh(2, 2, 2)
    model, params, tokenizer = load_pretrained(folder, mesh=mesh)
    model = model.clone(lora=settings.learning.lora)
    given = settings, model, tokenizer, load_all(settings.data.prompts)
    work = make_reinforcement(*given, module.build(*given))
    plan = plan_step(work, model, work.batches(0))
    params = frozen_base(model, params) if model.lora.rank else params
    state, frozen = work.start(params), work.frozen(params)
    assert plan.memory["parameters"] == on_first(state.params)
    assert plan.memory["optimizer"] == on_first(state.opt_state)
    scorer = () if model.lora.rank else frozen.reward.terms[1].reward.scorer.params
    assert plan.memory["frozen"] == on_first((scorer, frozen.base))
    sizes = [x.addressable_shards[0].data.size for x in jax.tree.leaves(state.params)]
    assert plan.within["gradients"] == 4 * sum(sizes)
    state, result = work.step(state, work.batches(0), jax.random.key(0), frozen)
    assert int(state.step) == 1 and np.isfinite(result.metrics["loss"])
    print(name, "as planned")
"""


def test_a_plan_is_the_step_that_runs(tiny_model_folder):
    """Bytes of each device are those of the arrays; the planned step is the one that runs.

    The second is PPO's, with a critic beside the policy.
    """
    lines, messages = run_on_eight_devices(_PLAN, ALPHAALIGN, tiny_model_folder)
    planned = ("1x8x1", "2x2x2", "lora", "little")
    assert lines == [f"{name} as planned" for name in planned], messages


def test_known_architectures_have_the_sizes_that_their_makers_state():
    """Parameters in billions, as on the models' cards; each loads on a mesh of 1."""
    stated = {
        "smollm2": 0.1345,
        "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1.71,
        "Qwen/Qwen2.5-3B": 3.09,
        "Qwen/Qwen2.5-3B-Instruct": 3.09,
        "Qwen/Qwen2.5-7B-Instruct": 7.61,
        "meta-llama/Llama-3.2-3B-Instruct": 3.21,
        "Qwen/Qwen3-8B": 8.2,
        "meta-llama/Meta-Llama-3-8B-Instruct": 8.03,
        "meta-llama/Llama-3.1-70B-Instruct": 70.55,
    }
    assert set(stated) == set(KNOWN)
    mesh = make_mesh(devices=jax.devices()[:1])
    for name, billions in stated.items():
        leaves = jax.tree.leaves(abstract_params(KNOWN[name], mesh))
        assert sum(leaf.size for leaf in leaves) / 1e9 == pytest.approx(billions, rel=0.005), name


def test_heads_that_a_mesh_would_cut_are_whole_while_sampling():
    """SmolLM2 has 9 heads and 3 for keys and values."""
    cut, whole = (
        parameter_shardings(KNOWN["smollm2"], AbstractMesh((1, 1, tensor), AXES), decoding=True)
        for tensor in (2, 3)
    )
    attention = [path for path in cut if "attention" in path]
    attention.remove("layers/attention_norm/scale")
    assert len(attention) == 4
    assert all("tensor" in whole[path].spec for path in attention)
    assert all("tensor" not in cut[path].spec for path in attention)
    assert cut["layers/mlp/up"].spec == whole["layers/mlp/up"].spec


@pytest.mark.parametrize("script", ["alphaalign", "ascl", "cada"])
def test_meshes_of_the_presets_divide_what_they_split(script):
    module = load_page(script)
    names = [name for name, preset in module.PRESETS.items() if preset.start.mesh]
    assert set(names) >= set(LARGE)
    for name in names:
        settings = read_settings(module, name, ["--arm", "rl"] if script == "cada" else [])
        settings.rl.check_with(settings)
        _, fsdp, tensor = settings.start.mesh
        config = read_architecture(settings.start.model)
        assert config.num_kv_heads % tensor == 0  # a head stays on one device
        assert config.mlp_dim % tensor == config.vocab_size % tensor == 0
        assert config.model_dim % fsdp == 0


def test_the_stand_in_has_the_words_asked_for():
    tokenizer = stand_in_tokenizer(9000)
    assert len(tokenizer) == 9000
    ids = tokenizer("How do I bake bread?")["input_ids"]
    assert tokenizer.decode(ids) == "How do I bake bread?"
    assert len(ids) < 12  # words, not bytes


def test_the_architecture_of_a_folder(tiny_model_folder):
    config = read_architecture(str(tiny_model_folder))
    assert (config.model_dim, config.num_layers, config.vocab_size) == (32, 2, 49152)
    assert (config.eos_token_id, config.stop_token_ids) == (2, ()), (
        "no stop more than the model has"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothere.py", "--preset", "demo", "--topology", "v5e:2x2"], "no such file"),
        (["nothere", "--preset", "demo", "--topology", "v5e:2x2"], "use one of alphaalign, ascl"),
        ([__file__, "--preset", "demo", "--topology", "v5e:2x2"], "has no PRESETS, build"),
        (
            ["direct_refusal", *DEMO[1:2], "smollm2", *DEMO[3:]],
            "nothing to plan: only steps of RL are",
        ),
        ([ALPHAALIGN, "--preset", "demos", "--topology", "v5e:2x2"], "unknown preset 'demos'"),
        ([ALPHAALIGN, "--preset", "demo", "--topology", "v9"], "unknown TPU 'v9'; use one of v5e"),
        ([ALPHAALIGN, "--preset", "demo", "--topology", "v5e:3x3"], "use v5e:1x1, v5e:2x2"),
        ([ALPHAALIGN, "--preset", "demo", "--topology", "v5e:"], "use v5e:1x1, v5e:2x2"),
        ([ALPHAALIGN, "--preset", "demo", "--topology"], "name at least one"),
        ([*DEMO, "--", "--micro-batches", "0"], "micro_batches=0 is too small"),
        ([*DEMO, "--", "--temperature", "0"], "temperature=0.0 must be a number above 0"),
        ([*DEMO, "--", "--model", "my.gguf"], "give the folder or the hub id"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, capsys):
    assert main(["plan", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_times_by_hand():
    """4 GFLOP, 10 GB and 5 GB at 2 GFLOP/s, 1 GB/s and 10 GB/s; then 9 GFLOP alone."""
    chip = chips.Chip(2e9, 16 * chips.GIB, 1e9, 10e9, ())
    sampling = Phase(4e9, 10e9, {"all-gather": 3e9, "all-reduce": 2e9})
    assert sampling.seconds(chip) == {"products": 2.0, "memory": 10.0, "messages": 0.5}
    memory = {"parameters": 3, "temporary": 4}
    plan = Plan((1, 2, 1), memory, {}, sampling, Phase(9e9, 0, {}), (), 1)
    assert plan.step_seconds(chip) == 10.0 + 4.5
    assert plan.bytes == 7


PLANNED = Plan(
    mesh=(1, 8, 1),
    memory=dict.fromkeys(
        ("parameters", "optimizer", "frozen", "batch", "outputs", "program", "temporary"), chips.GIB
    ),
    within={"decoding_weights": 1, "cache": 1, "gradients": 1},
    sampling=Phase(1e12, 819e9, {}),
    update=Phase(394e12, 1e9, {"all-reduce": 1e9}),
    decoding_loop=(),
    seconds_to_compile=1.0,
)


@pytest.mark.parametrize(
    ("message", "excess"),
    [
        ("HBM: Used 20.10G of 15.75G hbm. Exceeded hbm by 4.35G.", "20.10 of 15.75 GiB"),
        (
            "memory for HLO temporaries (16.07G) exceeds available HBM (15.75G). More.",
            "16.07 of 15.75 GiB",
        ),
        ("another reason\nat length", "another reason"),
    ],
)
def test_what_does_not_fit_is_said_shortly(message, excess):
    assert _excess(message) == excess


class TestSearch:
    """The search for a slice, with the compiler's answers given."""

    @pytest.fixture(autouse=True)
    def compiler(self, monkeypatch):
        """Says that fewer than 8 devices are too few."""

        def answer(work, model, batch):
            if model.mesh.size < 8:
                raise DoesNotFit("20.1 of 15.75 GiB")
            return PLANNED

        class Device:
            platform = "tpu"

        def devices(topology):
            sizes = topology.partition(":")[2].split("x")
            return [Device() for _ in range(math.prod(map(int, sizes)))]

        def mesh(*sizes, devices):
            if math.prod(sizes) != len(devices):
                raise InputError(f"mesh: {sizes} is not for {len(devices)} devices")
            return AbstractMesh(sizes, AXES)

        monkeypatch.setattr(scripts, "plan_step", answer)
        monkeypatch.setattr(scripts, "slice_devices", devices)
        monkeypatch.setattr(scripts, "make_mesh", mesh)

    def test_the_smallest_slice_that_fits(self, tmp_path, capsys):
        out = tmp_path / "plan.json"
        assert main(["plan", *DEMO[:-1], "v5e", "--out", str(out)]) == 0
        plans = json.loads(out.read_text())
        assert [plan["topology"] for plan in plans] == ["v5e:1x1", "v5e:2x2", "v5e:2x4"]
        assert plans[1] == {
            "topology": "v5e:2x2",
            "refused": "does not fit: 20.1 of 15.75 GiB; raise --micro-batches, or --mesh's tensor",
        }
        assert plans[2]["bytes_per_device"]["all"] == 7 * chips.GIB
        assert plans[2]["step_seconds_at_least"] == pytest.approx(1.0 + 2.0)  # memory, products
        shown = capsys.readouterr().out
        assert all(text in shown for text in ("7.00 of 16", "20.1", "3.00"))

    def test_a_mesh_that_is_wrong_costs_no_compiling(self, capsys):
        flags = ["--mesh", "1", "4", "2"]
        assert main(["plan", *DEMO[:-1], "v5e:2x4", "v5e:4x4", *flags]) == 2
        captured = capsys.readouterr()
        assert "mesh: (1, 4, 2) is not for 16 devices" in captured.err and not captured.out

    def test_a_flag_of_the_script_needs_two_dashes_before_it(self, capsys):
        assert main(["plan", *DEMO, "--micro-batches", "2"]) == 2
        assert "go behind --" in capsys.readouterr().err

    def test_no_slice_is_said(self, capsys):
        assert main(["plan", *DEMO]) == 2
        captured = capsys.readouterr()
        assert "the step fits on none of these" in captured.err
        assert "does not fit" in captured.out


def test_a_script_that_breaks_is_named(tmp_path, capsys):
    script = tmp_path / "mine.py"
    script.write_text("import nothing_of_this_name\n")
    assert main(["plan", str(script), "--preset", "demo", "--topology", "v5e:2x2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "mine.py: cannot be imported (ModuleNotFoundError: No module named 'nothing_of" in line


def test_cases_are_planned_for_the_arm_that_samples():
    module = load_page("cada")
    settings = read_settings(module, "smollm2", [])
    with pytest.raises(InputError, match="nothing to plan: .*cada.py takes them with --arm rl"):
        next(scripts.plans(module, settings, ["v5e:2x2"], None))


def test_the_compiler_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install -c constraints.txt -e '\.\[tpu\]'"):
        chips.slice_devices("v5e:2x2")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_the_demo_on_a_tpu(tmp_path, capsys):
    """Compiled for 1 and 4 chips: quarters where they are due, and a mesh that is wrong."""
    out = tmp_path / "plan.json"
    small = "--harmful 1 --benign 1 --lookalike 0 --samples-per-prompt 2 --max-new-tokens 16"
    command = ["plan", ALPHAALIGN, "--preset", "demo", "--topology", "v5e", "v5e:2x2"]
    assert main([*command, "--out", str(out), "--", *small.split()]) == 0
    one, four = json.loads(out.read_text())
    assert [plan["topology"] for plan in (one, four)] == ["v5e:1x1", "v5e:2x2"]
    assert four["bytes_per_device"]["parameters"] == one["bytes_per_device"]["parameters"] / 4
    assert four["update"]["flops"] == pytest.approx(one["update"]["flops"] / 4, rel=0.15)  # tiles
    assert not one["sampling"]["messages"] and not one["update"]["messages"]
    assert four["update"]["messages"]["all-gather"] > 0
    assert all(0 < plan["step_seconds_at_least"] < 1 for plan in (one, four))
    shown = capsys.readouterr().out
    assert "1 x 4 x 1" in shown and "step, s at least" in shown

    assert main([*command[:-2], "v5e:4x4", "--", *small.split()]) == 2
    assert "does not divide the 4 completions" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize(("model", "layers"), [("tiny", 2), ("smollm2", 30)])
def test_a_token_on_a_tpu_gathers_no_weights(model, layers, tiny_model_folder, tmp_path):
    """Read from the loops of a TPU's program; two devices would cut one of SmolLM2's 9 heads."""
    out = tmp_path / "plan.json"
    small = "--harmful 2 --benign 1 --lookalike 1 --samples-per-prompt 2 --max-new-tokens 8"
    name = str(tiny_model_folder) if model == "tiny" else model
    flags = ["--mesh", "1", "2", "2", "--out", str(out), "--", *small.split(), "--model", name]
    assert main(["plan", *DEMO, *flags]) == 0
    (plan,) = json.loads(out.read_text())
    decoding = plan["decoding_loop"]
    # Once a token, and once a layer and token.
    assert {m["times"] for m in decoding if m["kind"] == "all-reduce"} == {8, layers * 8}
    assert all(m["result"] < 1024 for m in decoding if m["kind"] == "all-gather")
