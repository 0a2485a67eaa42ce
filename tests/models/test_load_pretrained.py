"""`load_pretrained`: one door for every kind of model file."""

import dataclasses
import json
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
from jaxalign.text.chat_template import render_chats


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


@pytest.mark.parametrize("in_one_file", [False, True])
def test_a_chat_template_is_chosen_by_name(tmp_path: Path, in_one_file: bool):
    """Of those in files of their own, and of those in tokenizer_config.json; and its date."""
    folder, named = tmp_path / "model", {"default": "plain", "rag": "{{ strftime_now('%d.%m.') }}"}
    tokenizer = character_tokenizer(template=None if in_one_file else named)
    save_pretrained(folder, Transformer(POLICY), random_params(POLICY), tokenizer)
    save_pretrained(folder, Transformer(POLICY), random_params(POLICY), tokenizer)  # again
    if in_one_file:
        path = folder / "tokenizer_config.json"
        listed = [{"name": name, "template": text} for name, text in named.items()]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": listed}))

    def rendered(**chosen: Any) -> str:
        _, _, found = load_pretrained(folder, **chosen)
        return render_chats(found, [[]], finished=True)[0]["text"]

    _, _, loaded = load_pretrained(folder)
    save_pretrained(tmp_path / "again", Transformer(POLICY), random_params(POLICY), loaded)
    assert load_pretrained(tmp_path / "again")[2].chat_template == named
    assert rendered() == "plain"
    assert rendered(chat_template="rag", template_date="2026-03-09") == "09.03."
    with pytest.raises(InputError, match=r"model: no chat template 'x'; it has .*rag"):
        load_pretrained(folder, chat_template="x")
    with pytest.raises(InputError, match="template_date: 'x' is no date"):
        load_pretrained(folder, template_date="x")
    with pytest.raises(InputError, match="template_date: '' is no date"):
        load_pretrained(folder, template_date="")


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(
    tmp_path: Path, smollm2_tokenizer: Any
):
    small = dataclasses.replace(TINY, vocab_size=1000)
    save_pretrained(tmp_path / "small", Transformer(small), random_params(small), smollm2_tokenizer)
    with pytest.raises(InputError, match="tokenizer has 49152 tokens, the model 1000"):
        load_pretrained(tmp_path / "small")
