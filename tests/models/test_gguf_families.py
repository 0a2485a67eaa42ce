"""Qwen and Llama 3 from GGUF files, written here as llama.cpp's converter writes them."""

import dataclasses
import types
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from gguf import GGML_QUANT_SIZES
from tiny_model import random_params
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from jaxalign.host.errors import InputError
from jaxalign.models import ModelConfig, load_pretrained
from jaxalign.models.files.gguf_file import open_gguf
from jaxalign.models.files.gguf_tokenizer import PRE_TOKENIZERS, load_gguf_tokenizer
from jaxalign.models.heads import logits, output_weight
from jaxalign.models.parameters import leaf_shapes
from jaxalign.models.rotary import Llama3Scaling, rotary_frequencies
from jaxalign.text.encoding import encode_text

# All bytes, three words that merges make, one that none makes, and two special tokens.
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*BYTES, "12", "123", "ab", "xyz", "<|start|>", "<|end|>"]
TYPES = [1] * (len(TOKENS) - 2) + [3, 3]
MERGES = ["1 2", "12 3", "a b"]

LLAMA = ModelConfig(
    vocab_size=len(TOKENS),
    num_layers=2,
    model_dim=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=96,
    rope_theta=5e5,
    tie_embeddings=False,
    max_positions=128,
    bos_token_id=len(TOKENS) - 2,
    eos_token_id=len(TOKENS) - 1,
)
SCALING = Llama3Scaling(32.0, low_freq_factor=1, high_freq_factor=4, original_positions=8192)
FAMILIES = {
    "llama": (LLAMA, "llama-bpe"),
    "llama-3.2": (dataclasses.replace(LLAMA, rope_scaling=SCALING), "llama-bpe"),
    "qwen2": (dataclasses.replace(LLAMA, qkv_bias=True, tie_embeddings=True), "qwen2"),
    # transformers takes Qwen3's heads for 128 wide, whatever the file says.
    "qwen3": (dataclasses.replace(LLAMA, qk_norm=True, head_dim=128, num_heads=2), "qwen2"),
}
LAYER = {
    "attention_norm/scale": "attn_norm.weight",
    "attention/query": "attn_q.weight",
    "attention/key": "attn_k.weight",
    "attention/value": "attn_v.weight",
    "attention/query_bias": "attn_q.bias",
    "attention/key_bias": "attn_k.bias",
    "attention/value_bias": "attn_v.bias",
    "attention/query_norm/scale": "attn_q_norm.weight",
    "attention/key_norm/scale": "attn_k_norm.weight",
    "attention/output": "attn_output.weight",
    "mlp_norm/scale": "ffn_norm.weight",
    "mlp/gate": "ffn_gate.weight",
    "mlp/up": "ffn_up.weight",
    "mlp/down": "ffn_down.weight",
}
WHOLE = {
    "embed/embedding": "token_embd.weight",
    "final_norm/scale": "output_norm.weight",
    "lm_head/kernel": "output.weight",
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows i and i + d/2 of each head next to each other, as Llamas have them in GGUF files."""
    first, second = np.split(weight.reshape(heads, -1, weight.shape[1]), 2, axis=1)
    return np.stack([first, second], axis=2).reshape(weight.shape)


def tensors(config: ModelConfig, params: Any, arch: str) -> dict[str, np.ndarray]:
    leaves = traverse_util.flatten_dict(params, sep="/")
    found = {name: leaves[path] for path, name in WHOLE.items() if path in leaves}
    heads = {"attention/query": config.num_heads, "attention/key": config.num_kv_heads}
    for path, name in LAYER.items():
        for layer, value in enumerate(leaves.get(f"layers/{path}", [])):
            if arch == "llama" and path in heads:
                value = interleaved(value, heads[path])
            found[f"blk.{layer}.{name}"] = value
    if config.rope_scaling:
        plain, scaled = (
            rotary_frequencies(config.head_dim, config.rope_theta, scaling)
            for scaling in (None, config.rope_scaling)
        )
        found["rope_freqs.weight"] = (plain / scaled).astype(np.float32)
    return found


def write(
    path: Path,
    config: ModelConfig,
    pre: str,
    *,
    add_bos: bool | None = None,
    kinds: dict[str, int] | None = None,
) -> Any:
    """Writes a random model, some tokens of other kinds; returns its parameters."""
    types = dict(zip(TOKENS, TYPES, strict=True)) | (kinds or {})
    arch = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    params = random_params(config)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.model_dim)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types(list(types.values()))
    writer.add_token_merges(MERGES)
    if config.bos_token_id is not None:
        writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    for name, value in tensors(config, params, arch).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return params


@pytest.mark.parametrize("name", FAMILIES)
def test_configuration_and_weights_come_back(tmp_path, name):
    config, pre = FAMILIES[name]
    params = write(tmp_path / "tiny.gguf", config, pre)
    model, loaded, _ = load_pretrained(tmp_path / "tiny.gguf")
    assert model.config == config
    theirs = traverse_util.flatten_dict(loaded, sep="/")
    assert len(theirs) == len(leaf_shapes(config))
    for path, value in traverse_util.flatten_dict(params, sep="/").items():
        np.testing.assert_array_equal(theirs[path], value, err_msg=path)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_logits_are_those_of_transformers(tmp_path, name):
    """An independent reader of the format; it does not read Llama 3's scaling."""
    torch = pytest.importorskip("torch", reason="torch is only installed on Python 3.11")
    transformers = pytest.importorskip("transformers")
    config, pre = FAMILIES[name]
    write(tmp_path / "tiny.gguf", config, pre)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    model, params, _ = load_pretrained(tmp_path / "tiny.gguf", dtype=jnp.float32)
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=(2, 20)).astype(np.int32)
    positions = np.broadcast_to(np.arange(20), tokens.shape)
    hidden, _ = model.apply({"params": params}, tokens, positions, np.ones(tokens.shape, bool))
    ours = jax.device_get(logits(hidden, output_weight(params)))
    with torch.no_grad():
        expected = theirs.float()(torch.tensor(tokens)).logits.numpy()
    assert expected.std() > 0.5
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


def test_another_scaling_is_refused(tmp_path):
    scaling = dataclasses.replace(SCALING, high_freq_factor=8)
    config = dataclasses.replace(LLAMA, rope_scaling=scaling)
    write(tmp_path / "tiny.gguf", config, "llama-bpe")
    with pytest.raises(InputError, match=r"'rope_freqs.weight' is not Llama 3.1's scaling"):
        load_pretrained(tmp_path / "tiny.gguf")


# --- tokenizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        # One digit a word, so digits are never merged; words are made by merges alone.
        ("qwen2", ["ab", "1", "2", "3", "4", "x", "y", "z"]),
        # Up to three; a word of the vocabulary needs no merges.
        ("llama-bpe", ["ab", "123", "4", "xyz"]),
    ],
)
def test_words_are_cut_as_the_model_is_used_to(tmp_path, pre, pieces):
    write(tmp_path / "tiny.gguf", LLAMA, pre)
    tokenizer = load_gguf_tokenizer(tmp_path / "tiny.gguf")
    ids = tokenizer.encode("ab1234xyz", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == pieces
    assert tokenizer.encode("ab<|end|>")[-1] == LLAMA.eos_token_id


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe"])
@pytest.mark.parametrize(
    "text",
    ["it's 12 o'CLOCK,  and\r\n\r\n\tno more... ", "naïve 東京 ☃ e\u0301", "x+=1;\n\n  y", " ", ""],
)
def test_words_are_those_of_the_library(tmp_path, pre, text):
    """transformers has a recipe for Qwen2, and Llama 3's rule for files of its maker."""
    from transformers.convert_slow_tokenizer import Qwen2Converter, TikTokenConverter

    write(tmp_path / "tiny.gguf", LLAMA, pre)
    ours = load_gguf_tokenizer(tmp_path / "tiny.gguf").backend_tokenizer
    slow: Any = types.SimpleNamespace(add_prefix_space=False)
    if pre == "qwen2":
        vocab = {token: index for index, token in enumerate(TOKENS)}
        theirs = Qwen2Converter(slow).converted(vocab, [tuple(x.split()) for x in MERGES])
    else:
        theirs = Tokenizer(models.BPE())
        pattern = TikTokenConverter(vocab_file="").pattern
        theirs.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    normal = theirs.normalizer.normalize_str(text) if theirs.normalizer else text
    cut = theirs.pre_tokenizer.pre_tokenize_str(normal)
    assert ours.pre_tokenizer.pre_tokenize_str(normal) == cut
    assert (ours.normalizer.normalize_str(text) if ours.normalizer else text) == normal
    ids = ours.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == normal


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_a_users_text_is_letters_whatever_the_vocabulary_names(tmp_path, pre):
    """Every name is in the vocabulary of a GGUF file, where a word that needs no merges is met."""
    write(tmp_path / "tiny.gguf", LLAMA, pre, kinds={"xyz": 4, "ab": 3})
    tokenizer = load_gguf_tokenizer(tmp_path / "tiny.gguf")
    names = tokenizer.get_added_vocab()
    assert set(names) == {"xyz", "ab", "<|start|>", "<|end|>"}
    for name in names:
        for text in (name, f"{name} a", f"a{name}b", f"a {name} b", f"12 {name}", name * 2):
            ids = encode_text(tokenizer, text)
            assert set(names.values()).isdisjoint(ids)
            assert tokenizer.decode(ids) == text
    digits = ["1", "2"] if pre in ("smollm", "qwen2") else ["12"]
    pieces = tokenizer.convert_ids_to_tokens(encode_text(tokenizer, "12 ab"))
    assert pieces == [*digits, "Ġ", "a", "b"]


@pytest.mark.parametrize(
    ("pre", "add_bos", "added"),
    [
        ("llama-bpe", True, True),
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
        ("qwen2", None, False),
        ("qwen2", True, True),
    ],
)
def test_a_beginning_that_is_added(tmp_path, pre, add_bos, added):
    write(tmp_path / "tiny.gguf", LLAMA, pre, add_bos=add_bos)
    tokenizer = load_gguf_tokenizer(tmp_path / "tiny.gguf")
    ab = TOKENS.index("ab")
    assert tokenizer.encode("ab") == ([LLAMA.bos_token_id] if added else []) + [ab]
    assert tokenizer.encode("ab", add_special_tokens=False) == [ab]


def test_a_beginning_that_cannot_be(tmp_path):
    config = dataclasses.replace(LLAMA, bos_token_id=None)
    write(tmp_path / "tiny.gguf", config, "llama-bpe", add_bos=True)
    with pytest.raises(InputError, match="tokenizer.ggml.bos_token_id is missing"):
        load_gguf_tokenizer(tmp_path / "tiny.gguf")


# --- storage types -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(GGML_QUANT_SIZES))
def test_every_block_type_is_decoded_or_refused_as_the_gguf_package_does(tmp_path, kind):
    """Random bytes: what they mean is the package's business."""
    block, size = GGML_QUANT_SIZES[kind]
    packed = np.random.default_rng(0).integers(256, size=(3, 2 * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("one", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = open_gguf(tmp_path / "one.gguf")
    with np.errstate(invalid="ignore", over="ignore"):
        try:
            expected = gguf.dequantize(packed, kind)
        except NotImplementedError:  # how the package says that it has no decoder for a kind
            with pytest.raises(InputError, match="which the gguf package cannot decode"):
                file.read_tensor("one")
            return
        read = file.read_tensor("one")
    assert read.shape == (3, 2 * block)
    np.testing.assert_array_equal(read, expected)  # not a number is equal to itself here
