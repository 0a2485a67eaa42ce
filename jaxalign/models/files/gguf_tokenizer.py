"""The tokenizer inside a GGUF file: byte-level BPE, cut into words by one of a few rules."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxalign.host.errors import InputError
from jaxalign.models.files.gguf_file import open_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# How text is cut into words before merging, by GGUF's name of the rule. Qwen's and Llama 3's is
# this expression, with one digit a word and with up to three.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")  # llama.cpp knows it by three names
_EXPRESSIONS = {"qwen2": _WORDS % ""} | dict.fromkeys(_LLAMA3, _WORDS % "{1,3}")
PRE_TOKENIZERS = ("smollm", "gpt-2", *_EXPRESSIONS)

# Token types of the vocabulary.
_CONTROL, _USER_DEFINED = 3, 4


def load_gguf_tokenizer(path: str | Path) -> "PreTrainedTokenizerBase":
    """Builds the tokenizer that a GGUF file describes: byte-level BPE with its special tokens.

    A text begins with the bos token where the file says so, or says nothing and is Llama 3's.
    Control tokens are special, the chat template and the bos, eos, pad and unknown tokens are set.
    Bytes that the vocabulary lacks are dropped in encoding, as by the original tokenizer: for
    SmolLM2 the control characters 04, 06, 13, 14, 16, 1d (hexadecimal) and the lead bytes f1, f2.

    Raises:
      InputError: no such file, not a GGUF file, damaged, or a tokenizer of an unsupported kind.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    file = open_gguf(path)
    tokens = file.tokens()

    def field(name: str) -> Any:
        return file.metadata.get(f"tokenizer.ggml.{name}")

    kind, pre = field("model"), field("pre")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise InputError(
            f"{file.path}: tokenizer {kind!r} with pre-tokenizer {pre!r} is not supported; "
            f"supported: 'gpt2' with {' or '.join(map(repr, PRE_TOKENIZERS))}. "
            "Load the model from its Hugging Face folder instead"
        )
    if field("add_eos_token"):
        raise InputError(
            f"{file.path}: tokenizer.ggml.add_eos_token comes with a later release; load the model "
            "from its Hugging Face folder instead"
        )
    merges, types = field("merges"), field("token_type")
    if not isinstance(merges, list) or not isinstance(types, list) or len(types) != len(tokens):
        raise InputError(
            f"{file.path}: tokenizer.ggml.merges or token_type does not fit the "
            f"{len(tokens)} tokens; fetch the file again"
        )
    try:
        bpe = models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in merges],
            ignore_merges=pre in _LLAMA3,
        )
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(f"{file.path}: the tokenizer's merges are damaged ({error!r})") from None
    backend = Tokenizer(bpe)
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(
        [
            AddedToken(token, normalized=False, special=token_type == _CONTROL)
            for token, token_type in zip(tokens, types, strict=True)
            if token_type in (_CONTROL, _USER_DEFINED)
        ]
    )
    roles = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    ids = {role: file.token_id(name) for role, name in roles.items()}
    add_bos = field("add_bos_token")
    if pre in _LLAMA3 if add_bos is None else add_bos:
        bos = "" if ids["bos"] is None else tokens[ids["bos"]]
        try:
            backend.post_processor = processors.TemplateProcessing(
                single=[bos, "$A"],
                pair=[bos, "$A", bos, "$B:1"],
                special_tokens=[(bos, ids["bos"])],
            )
        except Exception as error:  # the library's own, a plain one
            raise InputError(
                f"{file.path}: tokenizer.ggml.bos_token_id is missing, or {bos!r} cannot open a "
                f"text ({error!r})"
            ) from None
    architecture = file.metadata.get("general.architecture")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        name_or_path=str(path),
        model_max_length=file.number(f"{architecture}.context_length", int),
        **{f"{role}_token": tokens[index] for role, index in ids.items() if index is not None},
    )
    of_metadata = file.metadata.get
    tokenizer.chat_template = of_metadata("tokenizer.chat_template")
    if isinstance(names := of_metadata("tokenizer.chat_templates"), list):
        named = {str(name): of_metadata(f"tokenizer.chat_template.{name}") for name in names}
        named["default"] = tokenizer.chat_template
        tokenizer.chat_template = {x: text for x, text in named.items() if isinstance(text, str)}
    return tokenizer


def _pre_tokenizer(name: str) -> Any:
    """Cuts text into words, and these into bytes."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = []
    if name == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True)]
    if name in _EXPRESSIONS:
        steps = [pre_tokenizers.Split(Regex(_EXPRESSIONS[name]), behavior="isolated")]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name not in _EXPRESSIONS)
    return pre_tokenizers.Sequence([*steps, to_bytes])
