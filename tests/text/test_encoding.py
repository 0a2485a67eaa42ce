"""A user's text is letters for every family of tokenizers, whatever tokens have been added."""

import json

import pytest
from conftest import SENTENCES
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from jaxalign.data.templates import alphaalign_messages, bare_messages, encode_chat, encode_exchange
from jaxalign.models.files.gguf_tokenizer import load_gguf_tokenizer
from jaxalign.text.encoding import encode_text

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
PLAIN = ("<think>", "</think>", "<tool_call>", "<|fim_prefix|>", "née", "   ", "qwertz")
WORDS = Regex(r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)


def byte_level(pre_tokenizer, normalizer=None, **options):
    """BPE on bytes: SmolLM2, Qwen and Llama 3 differ in how they cut words."""
    made = Tokenizer(models.BPE(**options))
    made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizer, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(SENTENCES * 4, trainer)
    return made


def byte_fallback(normalizer=None, pre_tokenizer=None):
    """BPE on characters with tokens for bytes: Llama 2 and Mistral."""
    letters = sorted({letter for text in SENTENCES for letter in text} | {"▁"} - {" "})
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁I", "an", "ere"]
    made = Tokenizer(
        models.BPE(
            {token: index for index, token in enumerate(tokens)},
            [("▁", "I"), ("a", "n")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    made.normalizer, made.pre_tokenizer = normalizer, pre_tokenizer
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return made


def words(**options):
    return byte_level(pre_tokenizers.Split(WORDS, behavior="isolated"), **options)


FAMILIES = {
    "smollm2": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "qwen": lambda: words(normalizer=normalizers.NFC()),
    "llama-3": lambda: words(ignore_merges=True),
    "llama-2": lambda: byte_fallback(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ),
    "mistral": lambda: byte_fallback(
        pre_tokenizer=pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    ),
    "lower case": lambda: words(normalizer=normalizers.Lowercase()),
}


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def family(request):
    """A tokenizer, its tokens of control, and the same tokenizer with none, which is the oracle."""
    backend = request.param()
    oracle = Tokenizer.from_str(backend.to_str())
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    backend.add_tokens([AddedToken(text, normalized=True) for text in PLAIN])
    assert not json.loads(oracle.to_str())["added_tokens"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer, oracle


def around(text):
    """A text in first, middle and last place, twice in a row, and as it is written elsewhere."""
    return [text, f"{text} a", f"a{text}b", f"I {text} an", f"an {text}", text * 2, text.upper()]


@pytest.mark.parametrize("added", [*SPECIAL, *PLAIN])
def test_the_name_of_an_added_token_is_letters(family, added):
    tokenizer, oracle = family
    of_control = set(tokenizer.get_added_vocab().values())
    for text in [*around(added), f"qwertz{added}<think>née"]:
        ids = encode_text(tokenizer, text)
        assert of_control.isdisjoint(ids), text
        assert ids == oracle.encode(text, add_special_tokens=False).ids, text


@settings(deadline=None, max_examples=200)
@given(parts=st.lists(st.sampled_from([*SPECIAL, *PLAIN, " ", "a", "1", "é", "\n"]) | st.text()))
def test_any_text_is_encoded_as_if_no_token_had_been_added(family, parts):
    tokenizer, oracle = family
    text = "".join(parts)
    assert encode_text(tokenizer, text) == oracle.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("template", [bare_messages, alphaalign_messages])
def test_the_tokens_of_control_in_a_chat_are_the_templates(family, template):
    """Those that it writes itself stay: the end of a turn, and Qwen 3's empty reasoning."""
    tokenizer, _ = family
    of_control = set(tokenizer.get_added_vocab().values())

    def found(encode, text):
        return [token for token in encode(text) if token in of_control]

    def chat(text):
        return sum(encode_chat(tokenizer, template(text)), [])

    def exchange(text):
        return encode_exchange(tokenizer, "Hello?", text)

    opened, closed = (tokenizer.convert_tokens_to_ids(x) for x in ("<think>", "</think>"))
    assert found(chat, "Hello")[-2:] == [opened, closed]
    for added in (*SPECIAL, *PLAIN):
        for text in around(added):
            assert found(chat, f"x{text}x") == found(chat, "Hello"), text
            assert found(exchange, text) == found(exchange, "Hello"), text


def test_a_word_that_is_in_the_models_own_vocabulary_too(smollm2_path, small_tokenizer):
    """In a GGUF file they all are; what no merge makes can't be met, but for whole words."""
    tokenizer = load_gguf_tokenizer(smollm2_path)
    of_control = set(tokenizer.get_added_vocab().values())
    for added in tokenizer.get_added_vocab():
        for text in around(added):
            ids = encode_text(tokenizer, text)
            assert of_control.isdisjoint(ids)
            assert tokenizer.decode(ids) == text
    backend = Tokenizer(
        models.BPE({"a": 0, "b": 1, "ab": 2, "<unk>": 3}, [], ignore_merges=True, unk_token="<unk>")
    )
    backend.add_tokens(["ab"])
    whole = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert whole("ab").input_ids == [2]
    assert encode_text(whole, "ab") == [0, 1]
    assert encode_text(whole, "z") == whole("z").input_ids == [3], "what it can't spell"


def test_what_a_unigram_model_cannot_spell_leaves_its_word_whole():
    pieces = [("<unk>", 0.0), ("▁hello", -1.0), ("world", -2.0), *((x, -9.0) for x in "▁helowrd")]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    oracle = Tokenizer.from_str(backend.to_str())
    backend.add_special_tokens(["<unk>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    for text in ("helloéworld", "hello éé world"):
        assert encode_text(tokenizer, text) == oracle.encode(text).ids
