"""A user's text is letters for every family of tokenizers, whatever tokens have been added."""

import copy
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
from jaxalign.host.errors import InputError
from jaxalign.models.files.gguf_tokenizer import load_gguf_tokenizer
from jaxalign.text.encoding import encode_text

# Of Qwen, Llama 3, Llama 2 and Mistral; each family gets all of them.
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<s>", "</s>", "[INST]")
PLAIN = ("<think>", "</think>", "<tool_call>", "<|fim_prefix|>", "née", "   ", "qwertz")
# How Qwen and Llama 3 cut words (with one digit a word, and with up to three), and Mistral's later
# tokenizer: from their tokenizer.json.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
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


def words(expression, **options):
    return byte_level(pre_tokenizers.Split(Regex(expression), behavior="isolated"), **options)


FAMILIES = {
    "smollm2": lambda: byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.Split(Regex(r" ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
            ]
        )
    ),
    "qwen": lambda: words(WORDS % "", normalizer=normalizers.NFC()),
    "llama-3": lambda: words(WORDS % "{1,3}", ignore_merges=True),
    "tekken": lambda: words(TEKKEN, ignore_merges=True),
    "llama-2": lambda: byte_fallback(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ),
    "mistral": lambda: byte_fallback(
        pre_tokenizer=pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    ),
    "lower case": lambda: words(WORDS % "", normalizer=normalizers.Lowercase()),
    "compatible": lambda: words(WORDS % "", normalizer=normalizers.NFKC()),
}


def with_names(backend):
    """The backend with tokens of control, as transformers loads it."""
    backend.add_special_tokens([AddedToken(x, rstrip=x == "<s>") for x in SPECIAL])
    backend.add_tokens([AddedToken(x, normalized=True, lstrip=x == "<think>") for x in PLAIN])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def family(request):
    """A tokenizer, its tokens of control, and the same tokenizer with none, which is the oracle."""
    backend = request.param()
    oracle = Tokenizer.from_str(backend.to_str())
    assert not json.loads(oracle.to_str())["added_tokens"]
    return with_names(backend), oracle


def wide(text):
    """In letters that NFKC takes for the ASCII ones: ＜ｔｈｉｎｋ＞."""
    return "".join(chr(ord(x) + 0xFEE0) if "!" <= x <= "~" else x for x in text)


def around(text):
    """A text in first, middle and last place, twice in a row, and as it is written elsewhere."""
    places = [text, f"{text} a", f"a{text}b", f"I {text} an", f"an {text}", text * 2]
    return [*places, text.upper(), wide(text)]


def check_letters(tokenizer, text, ids):
    """That ids spell a text as the tokenizer normalizes it, by no token of control."""
    assert set(tokenizer.get_added_vocab().values()).isdisjoint(ids), text
    normalizer = tokenizer.backend_tokenizer.normalizer
    letters = normalizer.normalize_str(text) if normalizer else text
    said, letters = (x.replace("▁", " ") for x in (tokenizer.decode(ids), letters))
    assert said in (letters, f" {letters}"), "sentencepiece begins a text with a space"


@pytest.mark.parametrize("added", [*SPECIAL, *PLAIN])
def test_the_name_of_an_added_token_is_letters(family, added):
    tokenizer, oracle = family
    for text in [*around(added), f"qwertz{added}<think>née"]:
        ids = encode_text(tokenizer, text)
        check_letters(tokenizer, text, ids)
        assert ids == oracle.encode(text, add_special_tokens=False).ids, text


texts = st.lists(
    st.sampled_from([*SPECIAL, *PLAIN, wide("<think>"), " ", "a", "1", "é", "\n"]) | st.text()
).map("".join)


@settings(deadline=None, max_examples=100)
@given(text=texts)
def test_any_text_is_encoded_as_if_no_token_had_been_added(family, text):
    tokenizer, oracle = family
    ids = encode_text(tokenizer, text)
    check_letters(tokenizer, text, ids)
    assert ids == oracle.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def knowing(request):
    """A family whose own vocabulary has the names too, each made by merges; it without the last.

    So has Mistral's, and that of every GGUF file.
    """
    made = json.loads(request.param().to_str())
    vocab, merges = made["model"]["vocab"], made["model"]["merges"]
    names = [x for x in (*SPECIAL, *PLAIN) if x.isascii() and x.strip()]
    for name in names:
        for end in range(1, len(name)):
            vocab.setdefault(name[:end], len(vocab))
            vocab.setdefault(name[end], len(vocab))
            if end > 1:
                merges.append([name[: end - 1], name[end - 1]])
    oracle = Tokenizer.from_str(json.dumps(made))
    for name in names:
        vocab[name] = len(vocab)
        merges.append([name[:-1], name[-1]])
    tokenizer = with_names(Tokenizer.from_str(json.dumps(made)))
    return tokenizer, oracle, not made["model"]["ignore_merges"]


@settings(deadline=None, max_examples=100)
@given(text=texts)
def test_a_name_that_the_model_knows_too_lacks_its_last_merge(knowing, text):
    """The rest of the text is spelled as ever; without merges a name has longer pieces."""
    tokenizer, oracle, merges = knowing
    ids = encode_text(tokenizer, text)
    check_letters(tokenizer, text, ids)
    of_control = set(tokenizer.get_added_vocab().values())
    if merges or of_control.isdisjoint(tokenizer(text).input_ids):
        assert ids == oracle.encode(text, add_special_tokens=False).ids


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


def test_the_names_that_smollm2_knows(smollm2_path):
    tokenizer = load_gguf_tokenizer(smollm2_path)
    of_control = set(tokenizer.get_added_vocab().values())
    for added in tokenizer.get_added_vocab():
        for text in around(added):
            ids = encode_text(tokenizer, text)
            assert of_control.isdisjoint(ids)
            assert tokenizer.decode(ids) == text


def small(tokens, merges, *added, **options):
    """BPE on letters without a pre-tokenizer, some of its tokens added ones."""
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", **options))
    backend.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def test_a_name_alone_is_in_pieces_and_the_text_around_it_whole():
    """Where all of a text is one word, as for Llama 2."""
    merges = [("a", "b"), ("a", "a"), ("ab", "c"), ("b", "c")]
    tokens = ["<unk>", "a", "b", "c", "ab", "aa", "abc", "bc"]
    tokenizer = small(tokens, merges, "abc")
    assert encode_text(tokenizer, "aabcbcaa") == [1, 4, 3, 7, 5]  # a ab·c bc aa
    tokenizer = small(tokens, merges, "abc", "ab")
    assert encode_text(tokenizer, "aabcbcaa") == [1, 1, 7, 7, 5]  # its beginning is one, too
    whole = small(tokens[:5], [], "ab", ignore_merges=True)
    assert whole("ab").input_ids == [4] and encode_text(whole, "ab") == [1, 2]
    assert encode_text(whole, "z") == whole("z").input_ids == [0], "what it can't spell"


def test_a_letter_that_is_an_added_token_is_bytes_or_refused():
    """Nothing else spells it."""
    letters, of_bytes = ["<unk>", "a", "$", "é"], ["<0x24>", "<0xC3>", "<0xA9>"]
    tokenizer = small([*letters, *of_bytes], [], "$", "é", byte_fallback=True)
    assert encode_text(tokenizer, "a$aé") == [1, 4, 1, 5, 6]
    for tokenizer in (small(letters, [], "$"), small([*letters, *of_bytes], [], "$", "<0x24>")):
        with pytest.raises(InputError, match=r"spells '\$' by an added token alone"):
            encode_text(tokenizer, "a$a")


def test_what_a_unigram_model_cannot_spell_leaves_its_word_whole():
    pieces = [("<unk>", 0.0), ("▁hello", -1.0), ("world", -2.0), *((x, -9.0) for x in "▁helowrd")]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    oracle = Tokenizer.from_str(backend.to_str())
    backend.add_special_tokens(["<unk>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    for text in ("helloéworld", "hello éé world"):
        assert encode_text(tokenizer, text) == oracle.encode(text).ids


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
        "{{ bos_token }}{{ messages[0].content }}",
        "{{ messages[0].content }} {{ bos_token }} {{ messages[0].role }}",
    ],
    ids=["chatml", "behind a token", "before one"],
)
def test_a_chat_is_encoded_as_by_the_tokenizer_itself(family, template):
    """Mistral's puts a space before the first word of a text, not behind a token."""
    tokenizer = copy.deepcopy(family[0])
    tokenizer.bos_token = "[INST]"
    tokenizer.chat_template = template
    chat = bare_messages("I’m an ere")
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    head, tail = encode_chat(tokenizer, chat)
    assert head + tail == tokenizer(text, add_special_tokens=False).input_ids
