"""Adapters in PEFT's folders: out and in again, opened by peft, and what can't be read."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_model import SMALL, random_params

from jaxalign.host.errors import InputError
from jaxalign.models.files.adapters import load_adapter, save_adapter
from jaxalign.models.files.weights import weights_digest
from jaxalign.models.lora import Lora, init_adapter, on_base
from jaxalign.models.transformer import Transformer

LORA = Lora(rank=3, alpha=6.0)


def learned(lora=LORA):
    rng = np.random.default_rng(1)
    new = init_adapter(SMALL, lora, jax.random.key(0))
    return jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), new)


@pytest.fixture
def folder(tmp_path):
    save_adapter(
        tmp_path / "adapter", SMALL, LORA, learned(), base="tiny", base_weights="0123456789abcdef"
    )
    return tmp_path / "adapter"


def edit(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "lora",
    [LORA, Lora(2, 5.5, ("mlp",)), Lora(2, 1.0, ("attention",), rank_stabilised=True)],
    ids=["all", "mlp", "attention"],
)
def test_what_is_saved_is_read_again(lora, tmp_path):
    adapter = learned(lora)
    save_adapter(tmp_path / "a", SMALL, lora, adapter, base="tiny", base_weights="12")
    read = load_adapter(tmp_path / "a", SMALL)
    assert (read.lora, read.base, read.base_weights) == (lora, "tiny", "12")
    jax.tree.map(np.testing.assert_array_equal, read.params, adapter)


def test_the_tensors_are_pefts(folder):
    """A layer's A and B by PEFT's names, which are those of transformers' modules."""
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * SMALL.num_layers
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_{}.weight"
    up = learned()["adapter"]["layers"]["mlp"]["up"]
    np.testing.assert_array_equal(tensors[name.format("A")], up["a"][1])
    np.testing.assert_array_equal(tensors[name.format("B")], up["b"][1])
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert (fields["r"], fields["lora_alpha"], fields["use_rslora"]) == (3, 6.0, False)
    assert set(fields["target_modules"]) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip


def test_an_adapter_is_replaced_and_nothing_else(folder, tmp_path):
    save_adapter(folder, SMALL, LORA, learned(), base="tiny", base_weights="9")
    assert load_adapter(folder, SMALL).base_weights == "9"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="notes: holds 'mine.txt', which is not replaced"):
        save_adapter(tmp_path / "notes", SMALL, LORA, learned(), base="tiny", base_weights="9")


def test_another_base_is_refused_by_name(tmp_path):
    base, folder = random_params(SMALL), tmp_path / "a"
    other = jax.tree.map(lambda x: 1.1 * x, base)
    digest = weights_digest(base)
    save_adapter(folder, SMALL, LORA, learned(), base="tiny", base_weights=digest)
    adapter = load_adapter(folder, SMALL)
    adapter.check_base(folder, "tiny", base)
    with pytest.raises(InputError, match=f"an adapter of tiny .weights {digest}., and other has"):
        adapter.check_base(folder, "other", other)
    (folder / "base.json").write_text("{}")
    with pytest.raises(InputError, match="base.json: weights is None, no fingerprint of a base"):
        load_adapter(folder, SMALL)
    (folder / "base.json").unlink()  # as PEFT writes it
    load_adapter(folder, SMALL).check_base(folder, "other", other)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; LORA is read"),
        ({"use_dora": True}, "use_dora is True, which is not supported"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"target_modules": "all-linear"}, "target_modules is 'all-linear': a list of names"),
        ({"target_modules": ["q_proj", "v_proj"]}, "all of attention's, all of the MLP's, or both"),
        ({"target_modules": ["lm_head"]}, "all of attention's"),
        ({"target_modules": []}, r"target_modules is \[\]: a list of names"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which is not supported"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is"),
        ({"something_new": 3}, "something_new is 3, which is not supported"),
        ({"use_rslora": "false"}, "use_rslora is 'false'; it is true or false"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"r": 0}, "r is 0; a rank is a whole number from 1 to"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": "many"}, "lora_alpha is 'many'; it is a number above 0"),
        ({"r": 4}, r"shape \[3, 16\] where rank and model ask for \[4, 16\]"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_is_no_plain_lora_is_refused(folder, fields, message):
    edit(folder, **fields)
    with pytest.raises(InputError, match=message):
        load_adapter(folder, SMALL)


def test_tensors_that_are_missing_or_too_many(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    last = max(tensors)
    save_file({name: x for name, x in tensors.items() if name != last}, path)
    with pytest.raises(InputError, match=f"tensor '{last}' is missing"):
        load_adapter(folder, SMALL)
    save_file(tensors | {"base_model.model.lm_head.lora_A.weight": tensors[last]}, path)
    with pytest.raises(InputError, match="lm_head.lora_A.weight' has no place"):
        load_adapter(folder, SMALL)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cut off or not a safetensors file"):
        load_adapter(folder, SMALL)
    path.unlink()
    with pytest.raises(InputError, match="adapter_model.safetensors: no such file"):
        load_adapter(folder, SMALL)
    with pytest.raises(InputError, match="no adapter's folder, it has no adapter_config.json"):
        load_adapter(folder.parent / "typo", SMALL)
    with pytest.raises(InputError, match=f"adapter_config.json: it is {folder}"):
        load_adapter(folder.parent, SMALL)  # a run's


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.astype(np.int8), "is stored as I8; supported: F32, BF16, F16"),
        (lambda x: x * np.float32("nan"), "has numbers that are not finite"),
    ],
    ids=["int8", "nan"],
)
def test_numbers_that_are_none(folder, change, message):
    path = folder / "adapter_model.safetensors"
    save_file({name: change(x) for name, x in load_file(path).items()}, path)
    with pytest.raises(InputError, match=message):
        load_adapter(folder, SMALL)


def test_half_precision_is_read(folder):
    path = folder / "adapter_model.safetensors"
    save_file({name: x.astype(jnp.bfloat16) for name, x in load_file(path).items()}, path)
    read = load_adapter(folder, SMALL).params
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0.01), read, learned())


@pytest.mark.torch
@pytest.mark.parametrize("stabilised", [False, True])
def test_peft_opens_it_and_has_the_same_logits(stabilised, tmp_path, smollm2_tokenizer):
    """And what PEFT writes of it is read again, to the bit."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from tiny_model import TINY
    from transformers import AutoModelForCausalLM

    from jaxalign.models import save_pretrained
    from jaxalign.models.heads import logits, output_weight

    lora = Lora(4, 8.0, rank_stabilised=stabilised)
    model = Transformer(TINY, dtype=jnp.float32, lora=lora)
    base = random_params(TINY)
    rng = np.random.default_rng(3)
    adapter = jax.tree.map(
        lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32),
        init_adapter(TINY, lora, jax.random.key(0)),
    )
    save_pretrained(tmp_path / "base", model, base, smollm2_tokenizer)
    save_adapter(tmp_path / "a", TINY, lora, adapter, base=str(tmp_path / "base"), base_weights="1")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    wrapped = peft.PeftModel.from_pretrained(theirs, tmp_path / "a").eval()
    ids = rng.integers(1, 1000, (2, 9)).astype(np.int32)
    with torch.no_grad():
        expected = wrapped(torch.tensor(ids, dtype=torch.long)).logits.numpy()

    def ours(params):
        states = model.states(
            params, ids[:, :1], np.ones((2, 1), bool), ids[:, 1:], np.ones((2, 8), bool)
        )
        return logits(states, output_weight(params))

    np.testing.assert_allclose(ours(on_base(adapter, base)), expected[:, :-1], atol=1e-4)
    assert np.abs(ours(base) - expected[:, :-1]).max() > 0.01
    wrapped.save_pretrained(tmp_path / "again")
    read = load_adapter(tmp_path / "again", TINY)
    assert read.lora == lora and read.base_weights == ""
    jax.tree.map(np.testing.assert_array_equal, read.params, adapter)
