"""`load_pretrained`: one door for every kind of model file."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TINY, random_params

from jaxalign.errors import InputError
from jaxalign.models import Transformer, load_pretrained, save_pretrained


def test_a_folder_gives_model_float32_parameters_and_tokenizer(tiny_model_folder: Path):
    model, params, tokenizer = load_pretrained(tiny_model_folder, dtype=jnp.bfloat16)
    assert model.dtype == jnp.bfloat16
    assert dataclasses.replace(model.config, pad_token_id=None) == TINY
    jax.tree.map(np.testing.assert_array_equal, params, random_params(TINY))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert tokenizer.decode(tokenizer("Good day").input_ids) == "Good day"


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(
    tmp_path: Path, smollm2_tokenizer: Any
):
    small = dataclasses.replace(TINY, vocab_size=1000)
    save_pretrained(tmp_path / "small", Transformer(small), random_params(small), smollm2_tokenizer)
    with pytest.raises(InputError, match="tokenizer has 49152 tokens, the model 1000"):
        load_pretrained(tmp_path / "small")
