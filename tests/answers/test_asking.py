"""Asking a model: two lines are enough, and bad sizes are named."""

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_templates import LLAMA_3, MISTRAL_1, MISTRAL_3
from tokenizers import AddedToken

from jaxalign.answers import Asking, LanguageModel, answers, ask
from jaxalign.answers.completing import find_stops
from jaxalign.data.templates import turn_end
from jaxalign.host.errors import InputError
from jaxalign.models import load_pretrained
from jaxalign.models.files.load import PLAIN_TEMPLATE
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
        ("<|eot_id|>{% if messages[2:] %}{{ raise_exception('one') }}{% endif %}", (2, 49152)),
        ("\n<note>", (2, 49153)),  # an added token that is not special
        ("\n<note><|eot_id|>", (2, 49153)),
        ("\nUser: <note><|eot_id|>", (2, 49152)),
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
    assert find_stops(lm.model, lm.tokenizer).tokens == (2,)
    assert find_stops(lm.model, tokenizer).tokens == stops


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (
            "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>\n{% endfor %}",
            "<|im_end|>",
        ),
        (LLAMA_3, "<|eot_id|>"),
        (MISTRAL_1, "</s>"),
        (MISTRAL_3, "</s>"),
        (PLAIN_TEMPLATE, "</s>"),
    ],
    ids=["chatml", "llama 3", "mistral 1", "mistral 3", "base"],
)
def test_how_the_turns_of_each_family_end(lm: LanguageModel, template: str, end: str) -> None:
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.add_tokens([AddedToken(x, special=True) for x in ("<|eot_id|>", "</s>", "<s>")])
    tokenizer.eos_token, tokenizer.bos_token = "</s>", "<s>"
    tokenizer.chat_template = template
    assert turn_end(tokenizer) == end


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
    assert find_stops(lm.model, tokenizer).tokens == (2,)


@pytest.mark.parametrize(
    ("template", "stops"),
    [
        (
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}",
            ((2,), ("\n\nuser:",)),
        ),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", ((2,), ())),
        (
            "{% for m in messages %}{{ m['content'] }} <note>\n{% endfor %}",
            ((2, 49152), ("<note>",)),
        ),
        ("{% for m in messages %}{{ m.content }}.\n{% endfor %}", ((2,), ())),
        ("{% for m in messages %}{{ loop.index }}. {{ m.content }}\n{% endfor %}", ((2,), ())),
        (PLAIN_TEMPLATE, ((2,), ())),  # the end token stands behind an answer
    ],
    ids=["words", "blank", "an added token", "a mark", "a number", "ours"],
)
def test_words_end_a_turn_where_the_template_writes_no_special_token(
    lm: LanguageModel, template: str, stops: tuple[Any, Any]
) -> None:
    """A base model that is shown earlier turns goes on with the next one."""
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.add_tokens("<note>")
    tokenizer.chat_template = template
    assert find_stops(lm.model, tokenizer) == stops


def test_words_end_an_answer_and_are_no_part_of_it(lm: LanguageModel) -> None:
    """Given by --stop or by the template, as for a base model; whatever tokens spell them."""

    def told(words: str) -> LanguageModel:
        tokenizer = copy.deepcopy(lm.tokenizer)
        end = f"{{% if not loop.last %}}{words}{{% endif %}}"
        tokenizer.chat_template = (
            f"{{% for m in messages %}}{{{{ m['content'] }}}}{end}{{% endfor %}}"
        )
        return dataclasses.replace(lm, tokenizer=tokenizer)

    asked = REQUESTS[:2]
    whole, other = answers(told(""), asked, Asking(max_new_tokens=8))
    texts = [lm.text(answer.written) for answer in (whole, other)]
    pieces = [lm.text(whole.written[i : i + 1]) for i in range(2)]
    words = pieces[0][-2:] + pieces[1][:2]  # the end of a token and the beginning of the next
    assert texts[0].count(words) == 1 and words not in texts[1] and words == words.strip()
    cut, same = answers(told(""), asked, Asking(max_new_tokens=8, stop=(words,)))
    np.testing.assert_array_equal(cut.tokens, whole.tokens[:2])
    np.testing.assert_array_equal(same.tokens, other.tokens)
    assert cut.finished and not same.finished
    assert ask(told(words), asked, max_new_tokens=8) == [texts[0].split(words)[0], texts[1]]


@pytest.mark.parametrize("name", ["<|im_start|>", "<note>"])
def test_a_token_is_a_stop_by_its_name(lm: LanguageModel, name: str) -> None:
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.add_tokens("<note>")
    token = tokenizer.convert_tokens_to_ids(name)
    own = LanguageModel(lm.model, lm.params, tokenizer)
    texts = (".",) if name == "<|im_start|>" else (name, ".")  # the other is seen in an answer
    assert own.stops([name, "."]) == (tuple(sorted((2, token))), texts)
    assert find_stops(lm.model, tokenizer, [name]).tokens == tuple(sorted((2, token)))
    with pytest.raises(InputError, match=r"stop: '\.' is the name of no token .*; give one of <"):
        find_stops(lm.model, tokenizer, [name, "."])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"samples": 0}, "samples is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1; it must be at least 1"),
        ({"stop": "###"}, r"stop must be several texts; write \['###'\] for one"),
        ({"stop": ("a", "")}, r"stop is \('a', ''\); give texts, none of them empty"),
        ({"stop": [5]}, r"stop is \[5\]; give texts, none of them empty"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens is 0; it must be at least 1"),
    ],
)
def test_bad_sizes_are_named(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Asking(**sizes)


@pytest.mark.parametrize(
    ("requests", "asking", "message"),
    [
        ([], Asking(), "no requests to answer; give at least one"),
        (REQUESTS, Asking(max_prompt_tokens=5), "the limit is 5: shorten it"),
        (REQUESTS, Asking(max_new_tokens=1100), "exceed the model's 1024 positions; ask for fewer"),
    ],
)
def test_what_cannot_be_asked_is_named(
    lm: LanguageModel, requests: list[str], asking: Asking, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        answers(lm, requests, asking)
