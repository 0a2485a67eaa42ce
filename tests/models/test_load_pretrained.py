"""`load_pretrained`: one door for every kind of model file."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from characters import POLICY, character_tokenizer
from tiny_model import TINY, random_params

from jaxalign.data.templates import encode_chat
from jaxalign.host.errors import InputError
from jaxalign.models import Transformer, load_pretrained, save_pretrained


def test_a_folder_gives_model_float32_parameters_and_tokenizer(tiny_model_folder: Path):
    model, params, tokenizer = load_pretrained(tiny_model_folder, dtype=jnp.bfloat16)
    assert model.dtype == jnp.bfloat16
    assert dataclasses.replace(model.config, pad_token_id=None) == TINY
    jax.tree.map(np.testing.assert_array_equal, params, random_params(TINY))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert tokenizer.decode(tokenizer("Good day").input_ids) == "Good day"


def test_a_base_model_without_chat_template_is_asked_in_plain_words(tmp_path: Path, caplog: Any):
    """Its end token shows in worked examples where an answer stops."""
    bare = character_tokenizer(template=None)
    save_pretrained(tmp_path / "base", Transformer(POLICY), random_params(POLICY), bare)
    _, _, tokenizer = load_pretrained(tmp_path / "base")
    (record,) = caplog.records
    assert "base: its tokenizer has no chat template" in record.getMessage()
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Name a fruit."},
        {"role": "assistant", "content": "Fig."},
        {"role": "user", "content": "Another?"},
    ]
    head, tail = encode_chat(tokenizer, messages)
    assert tokenizer.decode(head + tail) == (
        "Be kind.\n\nUser:\nName a fruit.\n\nAssistant:\nFig.<|im_end|>\n\n"
        "User:\nAnother?\n\nAssistant:\n"
    )
    assert tokenizer.eos_token_id in head and tokenizer.eos_token_id not in tail


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(
    tmp_path: Path, smollm2_tokenizer: Any
):
    small = dataclasses.replace(TINY, vocab_size=1000)
    save_pretrained(tmp_path / "small", Transformer(small), random_params(small), smollm2_tokenizer)
    with pytest.raises(InputError, match="tokenizer has 49152 tokens, the model 1000"):
        load_pretrained(tmp_path / "small")
