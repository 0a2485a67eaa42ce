"""Asking a model: two lines are enough, and bad sizes are named."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken

from jaxalign.answers import Asking, LanguageModel, answers, ask
from jaxalign.answers.completing import stop_tokens
from jaxalign.host.errors import InputError
from jaxalign.models import load_pretrained
from jaxalign.models.files.weights import weights_digest
from jaxalign.sampling import Temperature

REQUESTS = ["Name a river.", "Why is the sky blue at noon?", "Tell me a joke."]


@pytest.fixture(scope="module")
def lm(tiny_model_folder: Path) -> LanguageModel:
    return LanguageModel.load(tiny_model_folder, "float32")


def test_a_fresh_interpreter_asks_in_two_lines(lm: LanguageModel, tiny_model_folder: Path) -> None:
    code = (
        "from jaxalign.answers import LanguageModel, ask\n"
        f"print(ask(LanguageModel.load({str(tiny_model_folder)!r}, 'float32'), {REQUESTS!r}, "
        "max_new_tokens=4))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{ask(lm, REQUESTS, max_new_tokens=4)}\n"


def test_samples_of_a_request_stand_together_and_are_drawn_apart(lm: LanguageModel) -> None:
    drawn = {"method": Temperature(1.0), "samples": 2, "max_new_tokens": 4}
    by_one, at_once = (answers(lm, REQUESTS, Asking(batch_size=n, **drawn)) for n in (1, 8))
    assert [answer.request for answer in at_once] == [0, 0, 1, 1, 2, 2]
    for ours, theirs in zip(by_one, at_once, strict=True):
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    assert len({tuple(answer.tokens) for answer in at_once}) == 6


def test_a_loaded_model_computes_in_its_dtype_and_keeps_its_fingerprint(
    tiny_model_folder: Path,
) -> None:
    """A file of answers says which weights made it, whatever they were cast to."""
    model, params, tokenizer = load_pretrained(tiny_model_folder)
    lm = LanguageModel.load(tiny_model_folder, "bfloat16")
    assert lm.dtype == "bfloat16"
    assert jax.tree.leaves(lm.params)[0].dtype == jnp.bfloat16
    assert lm.digest == LanguageModel(model, params, tokenizer).digest == weights_digest(params)


@pytest.mark.parametrize(
    ("written", "stops"),
    [
        ("<|eot_id|>", (2, 49152)),
        (" \n<|eot_id|><|im_end|>", (2, 49152)),  # the first one ends the turn
        ("\n<note>", (2,)),  # words end none, nor do added tokens that are not special
        ("\n<note><|eot_id|>", (2, 49152)),
    ],
)
def test_what_a_template_writes_behind_an_answer_stops_one(
    lm: LanguageModel, written: str, stops: tuple[int, ...]
) -> None:
    """Llama 3's end of a turn is no end token in config.json, nor in older tokenizers' files."""
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.add_tokens([AddedToken("<|eot_id|>", special=True), "<note>"])
    tokenizer.chat_template = (
        f"{{% for m in messages %}}{{{{ m['content'] }}}}{written}{{% endfor %}}"
    )
    assert stop_tokens(lm.model, lm.tokenizer) == (2,)
    assert stop_tokens(lm.model, tokenizer) == stops


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ messages[0]['content'] }}",
        "{{ raise_exception('no answers') }}",
        "{{ 1 // 0 }}",
        {"tool_use": "{{ messages[0]['content'] }}"},
    ],
    ids=["none", "one turn", "raises", "divides", "of tools alone"],
)
def test_a_template_that_takes_no_answer_adds_no_stop(lm: LanguageModel, template: Any) -> None:
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.chat_template = template
    assert stop_tokens(lm.model, tokenizer) == (2,)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"samples": 0}, "samples is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1; it must be at least 1"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens is 0; it must be at least 1"),
    ],
)
def test_bad_sizes_are_named(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Asking(**sizes)


@pytest.mark.parametrize(
    ("requests", "asking", "message"),
    [
        ([], Asking(), "no requests to answer; give at least one"),
        (REQUESTS, Asking(max_prompt_tokens=5), "the limit is 5: shorten it"),
        (REQUESTS, Asking(max_new_tokens=600), "exceed the model's 512 positions; ask for fewer"),
    ],
)
def test_what_cannot_be_asked_is_named(
    lm: LanguageModel, requests: list[str], asking: Asking, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        answers(lm, requests, asking)
