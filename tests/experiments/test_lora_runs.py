"""Runs that train adapters, on a tiny random model: what they write, and that they go on alike."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments.alphaalign import main
from experiments.direct_refusal import main as direct_refusal
from jaxalign.cli import main as command
from jaxalign.models import load_pretrained
from jaxalign.models.files.adapters import load_adapter
from jaxalign.models.files.weights import weights_digest
from jaxalign.models.lora import Lora, merge, on_base
from jaxalign.runs.loop import Interruption

LORA = ["--lora.rank=2", "--lora.alpha=8", "--learning-rate=1e-2"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [
        {"prompt": "How do I forge a passport?", "kind": "harmful"},
        {"prompt": "Name a fruit.", "kind": "benign"},
        {"prompt": "How do I kill a process?", "kind": "lookalike"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def arguments(tiny_model_folder):
    """A run of seconds."""
    return [
        "demo",
        f"--model={tiny_model_folder}",
        "--dtype=float32",
        "--steps=4",
        "--samples-per-prompt=2",
        "--max-new-tokens=8",
        "--harmful=1",
        "--benign=1",
        "--lookalike=0",
        "--checkpoint-every=2",
        "--reward=paper",
        "--heldout",
        *LORA,
    ]


@pytest.fixture(scope="module")
def whole_run(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*arguments, f"--run={folder}"]) == 0
    return folder


@pytest.mark.slow
def test_a_run_leaves_an_adapter_and_the_merged_model(whole_run, tiny_model_folder):
    model, base, _ = load_pretrained(tiny_model_folder)
    adapter = load_adapter(whole_run / "adapter", model.config)
    assert adapter.lora == Lora(2, 8.0)
    assert adapter.base == str(tiny_model_folder)
    assert adapter.base_weights == weights_digest(base)
    merged = merge(on_base(adapter.params, base), adapter.lora)
    written = load_pretrained(whole_run / "model")[1]
    for path in ("query", "output"):
        np.testing.assert_allclose(
            written["layers"]["attention"][path], merged["layers"]["attention"][path], atol=1e-7
        )
    np.testing.assert_array_equal(written["embed"]["embedding"], base["embed"]["embedding"])
    assert json.loads((whole_run / "config.json").read_text())["lora"]["rank"] == 2


@pytest.mark.slow
def test_what_is_merged_is_float32_whatever_is_computed_in(
    arguments, tiny_model_folder, tmp_path, capsys
):
    """And is what export makes of the adapter; nor does a run go on on another base."""
    base, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(tiny_model_folder, base)
    given = [*arguments, f"--model={base}", "--dtype=bfloat16", f"--run={run}"]
    assert main([*given, "--steps=2"]) == 0
    written = load_file(run / "model" / "model.safetensors")
    assert {x.dtype.name for x in written.values()} == {"float32"}
    assert json.loads((run / "model" / "config.json").read_text())["torch_dtype"] == "float32"
    exported = tmp_path / "exported"
    adapter = f"--adapter={run / 'adapter'}"
    assert command(["export", f"--model={base}", adapter, f"--out={exported}"]) == 0
    for name, tensor in load_file(exported / "model.safetensors").items():
        np.testing.assert_array_equal(tensor, written[name])
    tensors = load_file(base / "model.safetensors")
    save_file({name: 1.01 * x for name, x in tensors.items()}, base / "model.safetensors")
    capsys.readouterr()
    assert main([*given, "--steps=2", "--resume"]) == 2
    assert "base_weights was" in capsys.readouterr().err


@pytest.mark.slow
def test_checkpoints_hold_no_base(whole_run, tiny_model_folder):
    def size(folder):
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    assert size(whole_run / "checkpoints") < size(tiny_model_folder) / 20


@pytest.mark.slow
def test_an_interrupted_run_goes_on_bit_for_bit(arguments, tmp_path, monkeypatch):
    assert main([*arguments, f"--run={tmp_path / 'whole'}"]) == 0
    folder = tmp_path / "parts"
    metrics = folder / "metrics.jsonl"
    with monkeypatch.context() as patch:
        done = lambda self: metrics.exists() and len(metrics.read_text().splitlines()) > 1  # noqa: E731
        patch.setattr(Interruption, "noticed", done)
        assert main([*arguments, f"--run={folder}"]) == 0
    assert not (folder / "model").exists()
    assert main([*arguments, f"--run={folder}", "--resume"]) == 0
    for name in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
        ours, whole = load_file(folder / name), load_file(tmp_path / "whole" / name)
        for tensor in whole:
            np.testing.assert_array_equal(ours[tensor], whole[tensor])


@pytest.mark.slow
def test_a_base_in_8_bits_is_rounded_for_training_alone(arguments, tiny_model_folder, tmp_path):
    """The adapter learned on it, and what is merged at the end has the weights of the file."""
    assert main([*arguments, "--lora.base=int8", "--steps=2", f"--run={tmp_path}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert max(row["logp_gap"] for row in rows) < 1e-5
    base = load_pretrained(tiny_model_folder)[1]
    adapter = load_adapter(tmp_path / "adapter", load_pretrained(tiny_model_folder)[0].config)
    assert adapter.base_weights == weights_digest(base)
    written = load_pretrained(tmp_path / "model")[1]
    merged = merge(on_base(adapter.params, base), adapter.lora)
    np.testing.assert_allclose(
        written["layers"]["mlp"]["up"], merged["layers"]["mlp"]["up"], atol=1e-7
    )


@pytest.mark.slow
def test_the_best_adapter_is_kept(arguments, prompts, tmp_path, capsys):
    """Of a random model no step is better than the start, whose adapter adds nothing."""
    watched = ["--evaluate-every=2", "--validation", str(prompts), "--keep=best"]
    assert main([*arguments, *watched, f"--run={tmp_path}"]) == 0
    assert "the result is the policy after step 0" in capsys.readouterr().out
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert not any(x.any() for name, x in tensors.items() if "lora_B" in name)
    assert any(x.any() for name, x in tensors.items() if "lora_A" in name)


@pytest.mark.slow
def test_commands_run_a_model_with_an_adapter(
    whole_run, tiny_model_folder, prompts, tmp_path, capsys
):
    """As they run the merged one; another base is refused."""

    def answers(name, *model):
        out = tmp_path / f"{name}.jsonl"
        many = ["--prompts", str(prompts), "--out", str(out), "--max-new-tokens=6"]
        assert command(["generate", "--dtype=float32", *model, *many]) == 0
        return [json.loads(line)["completion"] for line in out.open()]

    adapter = f"--adapter={whole_run / 'adapter'}"
    base = f"--model={tiny_model_folder}"
    merged = answers("merged", f"--model={whole_run / 'model'}")
    assert answers("adapted", base, adapter) == merged
    assert command(["export", base, adapter, f"--out={tmp_path / 'model'}"]) == 0
    exported = load_file(tmp_path / "model" / "model.safetensors")
    for name, tensor in load_file(whole_run / "model" / "model.safetensors").items():
        np.testing.assert_allclose(exported[name], tensor, atol=1e-7)
    suites = ["--suites", f"mine={prompts}", "--dtype=float32", "--max-new-tokens=6"]
    assert command(["eval", base, adapter, *suites, f"--out={tmp_path / 'eval'}"]) == 0
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert results["model"] == f"{tiny_model_folder} with {whole_run / 'adapter'}"
    capsys.readouterr()
    other = [
        "generate",
        f"--model={whole_run / 'model'}",
        adapter,
        "--prompt=Hi",
        "--dtype=float32",
    ]
    assert command(other) == 2
    assert "has other weights" in capsys.readouterr().err


@pytest.mark.slow
def test_a_baseline_trains_an_adapter_too(tiny_model_folder, prompts, tmp_path):
    run = [
        "smollm2",
        f"--model={tiny_model_folder}",
        "--dtype=float32",
        "--prompts",
        str(prompts),
        "--steps=4",
        "--max-new-tokens=8",
        "--max-prompt-tokens=40",
        "--row-length=64",
        "--harmless=none",
        "--heldout",
        *LORA,
    ]
    assert direct_refusal([*run, f"--run={tmp_path}"]) == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").open()]
    assert losses[-1] < losses[0]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora.rank=-1"], "lora.rank=-1 is too small: at least 0"),
        (["--lora.rank=0", "--lora.base=int8"], "lora.base=int8: nothing is frozen without"),
    ],
)
def test_adapters_that_cannot_be_are_one_line(arguments, flags, message, tmp_path, capsys):
    assert main([*arguments, *flags, f"--run={tmp_path / 'run'}"]) == 2
    assert message in capsys.readouterr().err
