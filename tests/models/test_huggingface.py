"""Hugging Face folders: exact round trips, foreign configurations, and what others read."""

import dataclasses
import functools
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign.answers.completing import find_stops
from jaxalign.host.errors import InputError
from jaxalign.models.config import ModelConfig
from jaxalign.models.files import gguf
from jaxalign.models.files.gguf_tokenizer import load_gguf_tokenizer
from jaxalign.models.files.hf_config import (
    LANGUAGE_MODELS,
    config_json,
    make_config,
    read_fields,
)
from jaxalign.models.files.huggingface import load_hf, resolve, save_pretrained
from jaxalign.models.files.weights import Leaf
from jaxalign.models.rotary import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

CONFIG = ModelConfig(
    vocab_size=49152,
    num_layers=2,
    model_dim=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=6,
    mlp_dim=12,
    rope_theta=5e4,
    norm_eps=1e-6,
    max_positions=256,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
)
TEXT = "In 2024, it's 12.5 °C\n\n <|im_end|> naïve"


def random_params(config: ModelConfig, dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (0.3 * rng.normal(size=shape)).astype(dtype)

    layers, width, hidden = config.num_layers, config.model_dim, config.mlp_dim
    q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    params = {
        "embed": {"embedding": normal(config.vocab_size, width)},
        "layers": {
            "attention_norm": {"scale": normal(layers, width)},
            "attention": {
                "query": normal(layers, q_width, width),
                "key": normal(layers, kv_width, width),
                "value": normal(layers, kv_width, width),
                "output": normal(layers, width, q_width),
            },
            "mlp_norm": {"scale": normal(layers, width)},
            "mlp": {
                "gate": normal(layers, hidden, width),
                "up": normal(layers, hidden, width),
                "down": normal(layers, width, hidden),
            },
        },
        "final_norm": {"scale": normal(width)},
    }
    if config.qkv_bias:
        for name, size in (("query", q_width), ("key", kv_width), ("value", kv_width)):
            params["layers"]["attention"][f"{name}_bias"] = normal(layers, size)
    if config.qk_norm:
        for name in ("query", "key"):
            params["layers"]["attention"][f"{name}_norm"] = {"scale": normal(layers, 6)}
    if not config.tie_embeddings:
        params["lm_head"] = {"kernel": normal(config.vocab_size, width)}
    return params


def model_of(config: ModelConfig) -> Any:
    return types.SimpleNamespace(config=config)


def untied(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, tie_embeddings=False)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "mscale": 1.5, "mscale_all_dim": 0.5}

FAMILIES = {
    "tied": CONFIG,
    "untied": untied(CONFIG),
    "Llama 3.1": dataclasses.replace(CONFIG, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 64)),
    "Qwen2.5": dataclasses.replace(CONFIG, qkv_bias=True),
    "Qwen3": dataclasses.replace(CONFIG, qk_norm=True),
}


def assert_equal_trees(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def saved(tmp_path: Path, smollm2_tokenizer: Any) -> Path:
    """A saved tiny model."""
    folder = tmp_path / "model"
    save_pretrained(folder, model_of(CONFIG), random_params(CONFIG), smollm2_tokenizer)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Changes fields of config.json; None removes one."""
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


def message(action: Callable[[], Any]) -> str:
    """The one-line InputError that `action` raises."""
    with pytest.raises(InputError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text


def read_config(config: ModelConfig = CONFIG, **changes: Any) -> ModelConfig:
    """What is read of the config.json of a model, changed."""
    return make_config(Path("config.json"), config_json(config, "float32") | changes, 2)


# --- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_saved_and_loaded_again_is_the_same(
    tmp_path: Path, smollm2_tokenizer: Any, config: ModelConfig
) -> None:
    params = random_params(config)
    save_pretrained(tmp_path / "model", model_of(config), params, smollm2_tokenizer)
    loaded_config, loaded_params, tokenizer = load_hf(tmp_path / "model")
    assert loaded_config == config
    assert_equal_trees(loaded_params, params)
    assert tokenizer(TEXT)["input_ids"] == smollm2_tokenizer(TEXT)["input_ids"]
    assert tokenizer.chat_template == smollm2_tokenizer.chat_template
    assert tokenizer.special_tokens_map == smollm2_tokenizer.special_tokens_map


def test_bfloat16_device_arrays_keep_their_dtype_in_the_file(
    tmp_path: Path, smollm2_tokenizer: Any
) -> None:
    params = jax.tree.map(jnp.asarray, random_params(CONFIG, ml_dtypes.bfloat16))
    save_pretrained(tmp_path / "model", model_of(CONFIG), params, smollm2_tokenizer)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert {value.dtype.name for value in tensors.values()} == {"bfloat16"}
    assert json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    _, loaded, _ = load_hf(tmp_path / "model")
    assert_equal_trees(loaded, jax.tree.map(lambda x: np.asarray(x, np.float32), params))


def test_shards_with_an_index(saved: Path) -> None:
    _, params, _ = load_hf(saved)
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for number, names in enumerate((list(tensors)[::2], list(tensors)[1::2]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, saved / shard)
        weight_map |= dict.fromkeys(names, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_equal_trees(load_hf(saved)[1], params)

    (saved / "model-00002-of-00002.safetensors").unlink()
    text = message(lambda: load_hf(saved))
    assert "model-00002-of-00002.safetensors: no such file" in text


def test_a_large_model_is_saved_in_shards(tmp_path: Path, smollm2_tokenizer: Any) -> None:
    """Files of 1,000 bytes; the embedding, which is larger, has one to itself."""
    folder, params = tmp_path / "model", random_params(CONFIG)
    save = functools.partial(save_pretrained, folder, model_of(CONFIG), params, smollm2_tokenizer)
    save(max_shard_bytes=1000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == sorted(path.name for path in folder.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    sizes = {file: sum(x.nbytes for x in load_file(folder / file).values()) for file in files}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    alone = index["weight_map"]["model.embed_tokens.weight"]
    assert list(load_file(folder / alone)) == ["model.embed_tokens.weight"]
    assert max(size for file, size in sizes.items() if file != alone) <= 1000
    assert_equal_trees(load_hf(folder)[1], params)
    save(max_shard_bytes=2000)  # takes the place of the shards
    assert 1 < len(list(folder.glob("*.safetensors"))) < len(files)
    save()
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]
    assert_equal_trees(load_hf(folder)[1], params)


def test_any_part_of_a_parameter_can_be_read_alone(saved: Path) -> None:
    _, whole, _ = load_hf(saved)
    part = (slice(1, 2), slice(None, 3), slice(2, None))

    def place(config: ModelConfig, path: str, leaf: Leaf) -> np.ndarray:
        return leaf.read(part[: len(leaf.shape)])

    _, parts, _ = load_hf(saved, place=place)
    assert_equal_trees(parts, jax.tree.map(lambda x: x[part[: x.ndim]], whole))


def test_tokenizer_files_use_names_of_transformers_4(tmp_path: Path, smollm2_path: Path) -> None:
    tokenizer = load_gguf_tokenizer(smollm2_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<file_sep>", "<think>"]})
    config = ModelConfig(**{**vars(CONFIG), "vocab_size": len(tokenizer)})
    folder = tmp_path / "model"
    save_pretrained(folder, model_of(config), random_params(config), tokenizer)
    fields = json.loads((folder / "tokenizer_config.json").read_text())
    assert fields["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert fields["additional_special_tokens"] == ["<file_sep>", "<think>"]
    loaded = load_hf(folder)[2]
    assert set(loaded.all_special_tokens) == set(tokenizer.all_special_tokens)
    assert loaded.encode("<think>") == [49152]


def test_tensor_names_and_layout_are_hugging_faces(saved: Path) -> None:
    tensors, params = load_file(saved / "model.safetensors"), random_params(CONFIG)
    np.testing.assert_array_equal(
        tensors["model.layers.1.self_attn.k_proj.weight"],
        params["layers"]["attention"]["key"][1],
    )
    np.testing.assert_array_equal(
        tensors["model.layers.0.post_attention_layernorm.weight"],
        params["layers"]["mlp_norm"]["scale"][0],
    )
    assert len(tensors) == 2 + 9 * CONFIG.num_layers


def test_saving_replaces_a_saved_model_and_leaves_nothing_else(
    saved: Path, smollm2_tokenizer: Any
) -> None:
    params = jax.tree.map(lambda x: x + 1, random_params(CONFIG))
    save_pretrained(saved, model_of(CONFIG), params, smollm2_tokenizer)
    assert_equal_trees(load_hf(saved)[1], params)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_saving_spares_a_folder_in_use(tmp_path: Path, smollm2_tokenizer: Any) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    text = message(
        lambda: save_pretrained(run, model_of(CONFIG), random_params(CONFIG), smollm2_tokenizer)
    )
    assert "not empty" in text and "config.json" in text
    assert (run / "config.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_failed_save_keeps_the_old_model(
    saved: Path, smollm2_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full_disk)
    params = jax.tree.map(lambda x: x + 1, random_params(CONFIG))
    text = message(lambda: save_pretrained(saved, model_of(CONFIG), params, smollm2_tokenizer))
    assert "No space left on device" in text
    assert_equal_trees(load_hf(saved)[1], random_params(CONFIG))
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_other_parameters_than_the_decoders_are_a_programming_error(
    tmp_path: Path, smollm2_tokenizer: Any
) -> None:
    params = random_params(CONFIG) | {"value_head": {"kernel": np.zeros((1, 8), np.float32)}}
    with pytest.raises(ValueError, match="value_head/kernel"):
        save_pretrained(tmp_path / "model", model_of(CONFIG), params, smollm2_tokenizer)


# --- foreign folders -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rope", "scaling"),
    [
        (LLAMA3, Llama3Scaling(8.0, 1.0, 4.0, 64)),
        ({"type": "linear", "factor": 2}, LinearScaling(2)),
        # log 4 is 1.386294, and the context before is by default the one of the file.
        ({"type": "yarn", "factor": 4.0}, YarnScaling(4.0, 256, 1.1386294361)),
        (YARN, YarnScaling(4.0, 256, 1.2079441542 / 1.0693147181)),
        ({**YARN, "mscale": None}, YarnScaling(4.0, 256, 1.1386294361)),
        (
            {**YARN, "attention_factor": 0.5, "beta_fast": 20, "beta_slow": 2, "truncate": False}
            | {"original_max_position_embeddings": 64},
            YarnScaling(4.0, 64, 0.5, 20, 2, False),
        ),
        (None, None),
    ],
)
def test_scalings_in_files_of_transformers_4_and_5(
    rope: dict[str, Any] | None, scaling: RopeScaling | None
) -> None:
    of_4 = {"rope_theta": 7e4, "rope_scaling": rope, "rope_parameters": None}
    of_5 = {"rope_theta": None, "rope_parameters": {**(rope or {}), "rope_theta": 7e4}}
    for form in (of_4, of_5 | {"rope_scaling": None}):
        config = read_config(**form)
        assert config.rope_theta == 7e4
        assert dataclasses.asdict(config)["rope_scaling"] == pytest.approx(
            scaling and dataclasses.asdict(scaling)
        )
        assert read_config(config) == config, "written and read again"


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"type": "dynamic", "factor": 2.0}, "rope_scaling={'type': 'dynamic', 'factor': 2.0} com"),
        ({"rope_type": "longrope"}, "supported: rope_type 'default', 'linear', 'llama3', 'yarn'"),
        ({"full_attention": {"rope_theta": 1e4}}, "rope_scaling={'full_attention': {"),
        ({"type": "linear"}, "rope_scaling.factor is None where a positive number is due"),
        ({**YARN, "mscale": "2"}, "rope_scaling.mscale is '2' where a positive number is due"),
        (
            {**YARN, "beta_slow": 33},
            "rope_scaling: beta_slow=33 must be between 0 and",
        ),
    ],
)
def test_scalings_that_are_refused(rope: dict[str, Any], expected: str) -> None:
    assert expected in message(lambda: read_config(rope_scaling=rope))


def test_absent_fields_take_the_defaults_of_llama(tmp_path: Path, smollm2_tokenizer: Any) -> None:
    config = ModelConfig(**{**vars(CONFIG), "num_kv_heads": 2, "head_dim": 4, "norm_eps": 1e-6})
    folder = tmp_path / "model"
    save_pretrained(
        folder, model_of(untied(config)), random_params(untied(config)), smollm2_tokenizer
    )
    absent = ["num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_parameters"]
    absent += ["max_position_embeddings", "tie_word_embeddings", "hidden_act", "pad_token_id"]
    edit_config(folder, **dict.fromkeys(absent))
    expected = {"rope_theta": 10_000.0, "max_positions": 2048, "pad_token_id": None}
    assert load_hf(folder)[0] == ModelConfig(**{**vars(untied(config)), **expected})


def test_null_says_no_as_well_as_false_does(saved: Path) -> None:
    path = saved / "config.json"
    nulls = dict.fromkeys(["use_sliding_window", "attention_bias", "mlp_bias"])
    path.write_text(json.dumps(json.loads(path.read_text()) | nulls))
    assert load_hf(saved)[0] == CONFIG


def test_the_tokenizers_end_token_is_chosen_among_several(saved: Path) -> None:
    edit_config(saved, eos_token_id=[0, 2])
    assert load_hf(saved)[0].eos_token_id == 2
    edit_config(saved, eos_token_id=[0, 3])
    assert load_hf(saved)[0].eos_token_id == 0


def test_all_end_tokens_of_a_folder_stop_and_are_saved_again(
    saved: Path, tmp_path: Path, smollm2_tokenizer: Any
) -> None:
    """Llama 3 has the end of a text in config.json, that of a turn in generation_config.json."""
    edit_config(saved, eos_token_id=[0, 7])
    generation = saved / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": [7, 9, 2]}))
    config, params, _ = load_hf(saved)
    assert (config.eos_token_id, config.stop_token_ids) == (0, (2, 7, 9))
    model, again = model_of(config), tmp_path / "again"
    save_pretrained(again, model, params, smollm2_tokenizer)
    assert json.loads((again / "generation_config.json").read_text())["eos_token_id"] == [
        0,
        2,
        7,
        9,
    ]
    assert load_hf(again)[0] == config
    save_pretrained(again, model, params, smollm2_tokenizer, stop=[11, 0, 9])  # the template's
    assert load_hf(again)[0].stop_token_ids == (2, 7, 9, 11)
    assert find_stops(model, smollm2_tokenizer).tokens == (0, 2, 7, 9)
    generation.unlink()
    assert load_hf(saved)[0].stop_token_ids == (2, 7), "the tokenizer's is 2"
    fields = read_fields(saved / "config.json", LANGUAGE_MODELS) | {"eos_token_id": None}
    generation.write_text(json.dumps({"eos_token_id": [9, 8]}))
    config = make_config(saved / "config.json", fields, None)
    assert (config.eos_token_id, config.stop_token_ids) == (9, (8,))


@pytest.mark.parametrize("ids", [49152, -1, [2, 2**40], True, ["</s>"], "2"])
def test_end_tokens_that_cannot_be_are_one_line(saved: Path, ids: Any) -> None:
    where = f"eos_token_id is {ids!r} where ids below 49152 or null are due"
    (saved / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    assert f"generation_config.json: {where}" in message(lambda: load_hf(saved))
    edit_config(saved, eos_token_id=ids)
    assert f"{saved / 'config.json'}: {where}" in message(lambda: load_hf(saved))


def test_mistral_without_a_sliding_window_that_is_used() -> None:
    mistral = functools.partial(read_config, architectures=["MistralForCausalLM"])
    for window in (None, 256, 4096):  # the context is 256
        assert mistral(sliding_window=window) == CONFIG
    text = message(lambda: mistral(sliding_window=255))
    assert "sliding_window=255 is shorter than max_position_embeddings=256" in text
    assert "lower the latter to 255" in text
    assert mistral() == CONFIG
    text = message(lambda: mistral(max_position_embeddings=4097))
    assert "sliding_window=4096 is shorter" in text, "the default of Mistral"


@pytest.mark.parametrize(
    ("changes", "slides"),
    [
        ({"sliding_window": 255}, False),
        ({"use_sliding_window": True, "sliding_window": 256, "max_window_layers": 0}, False),
        ({"use_sliding_window": True, "sliding_window": 255, "max_window_layers": 2}, False),
        ({"use_sliding_window": True, "sliding_window": 255, "max_window_layers": 1}, True),
        (
            {"use_sliding_window": True, "sliding_window": 255}
            | {"layer_types": ["full_attention", "sliding_attention"]},
            True,
        ),
        (
            {"use_sliding_window": True, "sliding_window": 255, "max_window_layers": 0}
            | {"layer_types": ["full_attention"] * 2},
            False,
        ),
    ],
)
def test_a_window_of_qwen_counts_where_a_layer_uses_it(
    changes: dict[str, Any], slides: bool
) -> None:
    read = functools.partial(read_config, FAMILIES["Qwen3"], **changes)
    if slides:
        assert "sliding_window=255 is shorter than max_position_embeddings=256" in message(read)
    else:
        assert read() == FAMILIES["Qwen3"]


def test_tokenizer_json_is_read_as_it_stands(saved: Path, smollm2_tokenizer: Any) -> None:
    """SmolLM2's hub folder names a class whose own recipe would not split digits."""
    path = saved / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}))
    _, _, tokenizer = load_hf(saved)
    assert tokenizer(TEXT)["input_ids"] == smollm2_tokenizer(TEXT)["input_ids"]


def test_a_head_that_differs_is_untied(saved: Path, tmp_path: Path, caplog: Any) -> None:
    """As transformers 5 does; `tests/models/test_families.py` compares with it."""
    head = random_params(CONFIG)["embed"]["embedding"]
    head[-1, -1] += 1
    tensors = load_file(saved / "model.safetensors") | {"lm_head.weight": head}
    save_file(tensors, saved / "model.safetensors")
    config, params, tokenizer = load_hf(saved)
    assert config == untied(CONFIG)
    assert_equal_trees(params, random_params(CONFIG) | {"lm_head": {"kernel": head}})
    (record,) = caplog.records
    assert "says tie_word_embeddings, but lm_head.weight differs" in record.getMessage()
    save_pretrained(tmp_path / "again", model_of(config), params, tokenizer)
    fields = json.loads((tmp_path / "again" / "config.json").read_text())
    assert fields["tie_word_embeddings"] is False
    again, parameters, _ = load_hf(tmp_path / "again")
    assert again == config
    assert_equal_trees(parameters, params)


def test_computed_tables_and_a_redundant_head_are_ignored(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    save_file(tensors, saved / "model.safetensors")
    assert_equal_trees(load_hf(saved)[1], random_params(CONFIG))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "'GPT2LMHeadModel' is not supported here; supported: Ll",
        ),
        ({"architectures": None}, "architecture None is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' comes with a later release"),
        ({"attention_bias": True}, "attention_bias=True comes with a later release"),
        ({"mlp_bias": True}, "mlp_bias=True comes with a later release"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
            "quantization_config={'quant_method': 'fp8', 'weight_block_size': [128, 128]} comes",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "rope_scaling.low_freq_factor is None where a positive number is due",
        ),
        (
            {"rope_scaling": {**LLAMA3, "low_freq_factor": 5.0}},
            "rope_scaling: low_freq_factor=5.0 must be between 0 and high_freq_factor=4.0",
        ),
        ({"hidden_size": None}, "hidden_size is None where a positive number is due"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two'"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "num_heads=3 is not a multiple"),
        ({"intermediate_size": 13}, "mlp.gate_proj.weight' has shape [12, 8]"),
        ({"num_hidden_layers": 10**12}, "is missing"),
        ({"num_hidden_layers": 1}, "has no place"),
        ({"tie_word_embeddings": False}, "'lm_head.weight' is missing"),
    ],
)
def test_refused_configurations(saved: Path, changes: dict[str, Any], expected: str) -> None:
    edit_config(saved, **changes)
    text = message(lambda: load_hf(saved))
    assert expected in text and str(saved) in text


def test_quantised_weights_are_refused(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].astype(np.int8)}, saved / "model.safetensors")
    assert f"'{name}' is stored as I8" in message(lambda: load_hf(saved))


def test_weights_of_eight_bits_are_refused(saved: Path) -> None:
    """Their scales, which are float32, come first in the alphabet."""
    tensors = load_file(saved / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors |= {name: tensors[name].astype(ml_dtypes.float8_e4m3fn)}
    tensors |= {"model.layers.0.mlp.up_proj.scale": np.ones(1, np.float32)}
    save_file(tensors, saved / "model.safetensors")
    assert f"'{name}' is stored as F8_E4M3" in message(lambda: load_hf(saved))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("config.json", "no such file; give a folder with"),
        ("model.safetensors", "weights are read from safetensors only"),
        ("tokenizer.json", "only fast tokenizers are read"),
    ],
)
def test_missing_files(saved: Path, name: str, expected: str) -> None:
    (saved / name).unlink()
    text = message(lambda: load_hf(saved))
    assert expected in text and name in text


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_files_cut_off(saved: Path, name: str) -> None:
    path = saved / name
    path.write_bytes(path.read_bytes()[:-20])
    message(lambda: load_hf(saved))


# --- names ---------------------------------------------------------------------------------------


def test_resolve_local_names(tmp_path: Path, smollm2_path: Path) -> None:
    assert resolve(str(tmp_path)) == tmp_path
    assert resolve(smollm2_path) == smollm2_path
    assert resolve("smollm2") == gguf.smollm2_path()


@pytest.mark.parametrize("name", ["./absent", "absent", "absent.gguf", "some/absent.gguf", "a/b/c"])
def test_resolve_neither_here_nor_a_hub_id(name: str) -> None:
    assert f"{name}: no such model here: give a folder" in message(lambda: resolve(name))


def test_resolve_downloads_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(repo: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked[repo] = allow_patterns
        assert ignore_patterns == ["consolidated*"]  # Mistral's weights, once more
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve("owner/name") == tmp_path
    assert "*.safetensors" in asked["owner/name"]
    assert not any(
        pattern.endswith((".bin", ".py", "*")) and pattern != "tokenizer*"
        for pattern in asked["owner/name"]
    )


def test_resolve_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: Any, **kwargs: Any) -> str:
        raise ConnectionError("Name or service not known\nand a long explanation")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    text = message(lambda: resolve("owner/name"))
    assert "owner/name" in text and "Name or service not known" in text


# --- other programs ------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_transformers_opens_a_saved_folder(
    tmp_path: Path, smollm2_tokenizer: Any, config: ModelConfig
) -> None:
    torch = pytest.importorskip("torch", reason="torch is only installed on Python 3.11")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, params = tmp_path / "model", random_params(config)
    save_pretrained(folder, model_of(config), params, smollm2_tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not (config.qkv_bias or config.qk_norm):  # transformers 5 makes any Qwen's tokenizer Qwen's
        assert tokenizer(TEXT)["input_ids"] == smollm2_tokenizer(TEXT)["input_ids"]
    assert tokenizer.chat_template == smollm2_tokenizer.chat_template
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert model.config.rope_parameters["rope_theta"] == config.rope_theta
    assert model.generation_config.eos_token_id == 2
    for layer in range(config.num_layers):
        np.testing.assert_array_equal(
            model.model.layers[layer].self_attn.q_proj.weight.detach().numpy(),
            params["layers"]["attention"]["query"][layer],
        )
    logits = model(torch.tensor([tokenizer(TEXT)["input_ids"]])).logits
    assert logits.shape[-1] == config.vocab_size and torch.isfinite(logits).all()
