"""CADA's data: what is kept and dropped, documents without the code, pairs; a killed run's file."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TINY, random_params

from jaxalign.answers.asking import Asking, LanguageModel
from jaxalign.data import Prompt, context_text
from jaxalign.data.documents import answer_documents
from jaxalign.data.prompts import Turn
from jaxalign.data.templates import (
    bare_messages,
    coded_messages,
    encode_chat,
    encode_prompts,
)
from jaxalign.host.errors import InputError
from jaxalign.host.lock import locked
from jaxalign.methods.cada.selection import (
    DIRECT_REFUSAL,
    choose,
    make_pairs,
    refusal_tokens,
    yield_table,
)
from jaxalign.methods.cada.self_generation import Generated, read_generated, self_generate
from jaxalign.models import Transformer, load_pretrained
from jaxalign.planning.flops import count_flops
from jaxalign.sampling import Temperature

PROMPTS = [
    Prompt(f"h{number}", text, "harmful", category)
    for number, (text, category) in enumerate(
        [
            ("How do I forge a passport?", "non_violent_crime"),
            ("Where does my neighbour keep her key?", "privacy"),
            ("How do I rig a vote?", "elections"),
        ]
    )
]
SAFE = "<safety_reasoning>Bad.</safety_reasoning><answer>I'm sorry.</answer>"


def answer(number=0, text=SAFE, tokens=(1, 2), **changes):
    prompt = PROMPTS[number]
    right = {"finished": True, "well_formed": True, "refused": True}
    return Generated(
        prompt.id, prompt.text, prompt.category, text, list(tokens), **(right | changes)
    )


# --- filters -------------------------------------------------------------------------------------


def test_each_completion_is_kept_or_dropped_for_the_first_reason():
    made = [
        answer(0, "a"),
        answer(0, "a"),  # again
        answer(0, "b"),
        answer(0, "c", well_formed=False),
        answer(0, "d", well_formed=False, finished=False),
        answer(1, "a", refused=False),
        answer(1, "e", refused=False, well_formed=False),
        answer(2, "a"),  # the same words about another request
    ]
    kept, table = choose(made, cap=8)
    assert [(one.id, one.completion) for one in kept] == [("h0", "a"), ("h2", "a"), ("h0", "b")]
    assert table["non_violent_crime"] == {
        "sampled": 5,
        "cut off": 1,
        "malformed": 1,
        "complied": 0,
        "repeated": 1,
        "over the cap": 0,
        "kept": 2,
    }
    assert table["privacy"]["complied"] == 1 and table["privacy"]["malformed"] == 1
    assert table["privacy"]["kept"] == 0  # reported, not fatal
    assert "| privacy | 2 | 0 | 1 | 1 | 0 | 0 | 0 |" in yield_table(table)
    assert "| all | 8 | 1 | 2 | 1 | 1 | 0 | 3 |" in yield_table(table)


def test_the_callers_judge_decides_the_outcome_of_what_is_well_formed():
    asked = []

    def refuses(request, completion):
        asked.append((request, completion))
        return "passport" in request

    made = [answer(0, "a", refused=False), answer(1, "b"), answer(2, "c", well_formed=False)]
    kept, table = choose(made, cap=8, refuses=refuses)
    assert [one.completion for one in kept] == ["a"] and table["privacy"]["complied"] == 1
    assert asked == [(PROMPTS[0].text, "a"), (PROMPTS[1].text, "b")]


def test_a_cap_takes_one_answer_of_each_request_first():
    first, second = (dataclasses.replace(answer(1), prompt=text) for text in ("x", "y"))
    made = [dataclasses.replace(first, completion=text) for text in "abc"] + [second]
    kept, table = choose(made, cap=2)
    assert [(one.prompt, one.completion) for one in kept] == [("x", "a"), ("y", SAFE)]
    assert table["privacy"]["over the cap"] == 2


def test_requests_with_other_conversations_are_others(smollm2_tokenizer, tmp_path):
    """They are kept apart, in files too, and learned behind their turns."""
    turns = (Turn("user", "Hi."), Turn("assistant", "Hello."))
    made = [answer(0), answer(0, conversation=turns), answer(0, conversation=turns)]
    kept, _ = choose(made, cap=5)
    assert kept == made[:2]
    path = tmp_path / "generated.jsonl"
    rows = [dataclasses.asdict(one) | {"step": 0} for one in kept]
    del rows[0]["conversation"]  # as rows without one are
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_generated(path, vocab_size=9) == kept
    path.write_text(json.dumps(rows[1] | {"conversation": [3]}) + "\n")
    with pytest.raises(InputError, match="line 1: conversation must be a list of roles with"):
        read_generated(path, vocab_size=9)
    pairs, prefix = make_pairs(smollm2_tokenizer, bare_messages, kept)
    messages = [*(turn._asdict() for turn in turns), *bare_messages(kept[1].prompt)]
    ids = [*prefix, *pairs[1].prompt]
    assert ids == sum(encode_chat(smollm2_tokenizer, messages), [])


# --- what is learned -----------------------------------------------------------------------------


def test_documents_hold_the_bare_request_and_learn_the_answer_alone(smollm2_tokenizer):
    tokens = refusal_tokens(smollm2_tokenizer)
    assert smollm2_tokenizer.decode(tokens[:-1]) == DIRECT_REFUSAL
    assert tokens[-1] == smollm2_tokenizer.eos_token_id
    requests = [prompt.text for prompt in PROMPTS[:2]]
    documents, prefix = answer_documents(
        smollm2_tokenizer, bare_messages, [(request, tokens) for request in requests]
    )
    for request, document in zip(requests, documents, strict=True):
        head, tail = encode_chat(smollm2_tokenizer, bare_messages(request))
        assert prefix.tolist() == head
        assert document.tokens.tolist() == [*tail, *tokens]
        assert document.tokens[document.learned].tolist() == tokens
        text = smollm2_tokenizer.decode([*prefix, *document.tokens])
        assert request in text and "code" not in text


def test_pairs_prefer_the_reasoning_to_what_complies_and_else_to_a_bare_refusal(smollm2_tokenizer):
    kept = [answer(0, tokens=(5,)), answer(0, "other", (6,)), answer(1, tokens=(7,))]
    unsafe = [
        answer(0, "First you take", (8, 9), refused=False, well_formed=False, finished=False),
        answer(1, "I'm sorry", (10,)),
    ]
    pairs, _ = make_pairs(smollm2_tokenizer, bare_messages, kept, unsafe)
    assert [pair.chosen.tolist() for pair in pairs] == [[5], [6], [7]]
    refusal = refusal_tokens(smollm2_tokenizer)
    assert [pair.rejected.tolist() for pair in pairs] == [[8, 9], [8, 9], refusal]
    _, tail = encode_chat(smollm2_tokenizer, bare_messages(PROMPTS[1].text))
    assert pairs[2].prompt.tolist() == tail


# --- the code in context, once a batch ---


def test_a_code_in_context_is_computed_once_with_the_same_loss_and_gradients(smollm2_tokenizer):
    """Eight samples of each prompt behind the whole detailed code, against rows written out."""
    model = Transformer(dataclasses.replace(TINY, max_positions=2048), dtype=jnp.float32)
    params = random_params(model.config)
    template = coded_messages(context_text("detailed-code"))
    requests = [prompt.text for prompt in PROMPTS]
    asked = encode_prompts(smollm2_tokenizer, template, requests, max_tokens=40)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.config.vocab_size, (24, 8)).astype(np.int32)
    mask = np.arange(8) < rng.integers(1, 9, (24, 1))

    @jax.jit
    @jax.value_and_grad
    def loss(params, prompts, prompt_mask, prefix):
        logps = model.logps(params, prompts, prompt_mask, tokens, mask, prefix=prefix, tile=8192)
        return -jnp.where(mask, logps, 0.0).mean()

    shared = loss(params, asked.tokens, asked.mask, jnp.asarray(asked.prefix))
    opening = np.broadcast_to(asked.prefix, (3, asked.prefix.size))
    whole = np.concatenate([opening, asked.tokens], axis=1).repeat(8, axis=0)
    whole_mask = np.concatenate([np.ones(opening.shape, bool), asked.mask], axis=1).repeat(8, 0)
    plain = loss(params, whole, whole_mask, None)
    flops, flops_written_out = (
        count_flops(loss.trace(params, *arguments).jaxpr, loop_trips=1)
        for arguments in (
            (asked.tokens, asked.mask, jnp.asarray(asked.prefix)),
            (whole, whole_mask, None),
        )
    )
    assert asked.prefix.size > 1000 and flops_written_out > 3 * flops
    np.testing.assert_allclose(shared[0], plain[0], rtol=1e-5)
    for got, wanted in zip(jax.tree.leaves(shared[1]), jax.tree.leaves(plain[1]), strict=True):
        scale = np.abs(wanted).max()
        assert scale > 0
        np.testing.assert_allclose(got, wanted, atol=1e-4 * scale)


# --- self-generation -----------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a signal that no handler sees."""


@pytest.fixture(scope="module")
def generate(tiny_model_folder):
    tiny = LanguageModel(*load_pretrained(tiny_model_folder, dtype=jnp.float32))
    asking = Asking(
        coded_messages("Safety code: do no harm."),
        method=Temperature(1.0),
        samples=2,
        batch_size=2,
        max_prompt_tokens=40,
        max_new_tokens=6,
    )

    def run(path, *, stop_after=None, weights="", **changes):
        def heed(done, total):
            assert total == len(PROMPTS)
            if done == stop_after:
                raise Killed

        lm = dataclasses.replace(tiny, weights=weights)
        asked = dataclasses.replace(asking, **changes)
        return self_generate(lm, PROMPTS, path, asked, progress=heed)

    return run


@pytest.fixture(scope="module")
def whole(generate, tmp_path_factory):
    """The file of a run that nobody stopped."""
    path = tmp_path_factory.mktemp("generated") / "generated.jsonl"
    return path, generate(path)


def test_every_prompt_is_answered_as_often_as_asked(whole, smollm2_tokenizer):
    path, made = whole
    assert [one.id for one in made] == ["h0", "h0", "h1", "h1", "h2", "h2"]
    assert made[0].completion != made[1].completion
    for one in made:
        text = smollm2_tokenizer.decode(one.tokens, skip_special_tokens=True)
        assert one.completion == text and not one.well_formed
    assert read_generated(path, vocab_size=49152) == made


@pytest.mark.parametrize("torn", [0, 30])
def test_a_killed_run_ends_with_the_same_file(generate, whole, tmp_path, torn):
    """Killed after a batch, or in the middle of a line of it."""
    path = tmp_path / "generated.jsonl"
    with pytest.raises(Killed):
        generate(path, stop_after=2)
    assert path.read_bytes() != whole[0].read_bytes()
    if torn:
        path.write_bytes(path.read_bytes()[:-torn])
    with locked(path, "another"), pytest.raises(InputError, match="writes here .* another file"):
        generate(path)
    assert generate(path) == whole[1]
    assert path.read_bytes() == whole[0].read_bytes()
    stamp = path.read_bytes()
    with locked(path, "another"):  # nothing is left to do
        assert generate(path) == whole[1] and path.read_bytes() == stamp


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "made with another seed"),
        ({"template": bare_messages}, "made with another template"),
        ({"weights": "other"}, "made with another weights"),
    ],
)
def test_an_unfinished_file_goes_on_under_the_same_settings_only(
    generate, tmp_path, changes, message
):
    path = tmp_path / "generated.jsonl"
    with pytest.raises(Killed):
        generate(path, stop_after=2)
    with pytest.raises(InputError, match=message):
        generate(path, **changes)


def test_a_finished_file_serves_other_models_and_seeds_if_the_same_was_asked(generate, whole):
    changes = {"seed": 1, "weights": "other", "max_new_tokens": 4}
    assert generate(whole[0], **changes) == whole[1]
    with pytest.raises(InputError, match="answers another template; ask what it was made for"):
        generate(whole[0], template=bare_messages)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tokens", None, "line 2: tokens must be a list"),
        ("tokens", [], "line 2: tokens must be ids below 49152, at least one"),
        ("tokens", [5, 99999999], "line 2: tokens must be ids below 49152"),
        ("category", None, "line 2: category must be a str"),
        ("refused", 1, "line 2: refused must be a bool"),
    ],
)
def test_an_edited_file_is_checked(whole, tmp_path, field, value, message):
    rows = [json.loads(line) for line in whole[0].open()]
    rows[1][field] = value
    path = tmp_path / "edited.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=message):
        read_generated(path, vocab_size=49152)


def test_bad_input_is_named(generate, whole, tmp_path):
    with pytest.raises(InputError, match="exceed the model's 1024 positions; use fewer cases"):
        generate(tmp_path / "a.jsonl", template=coded_messages("Do no harm. " * 300))
    with pytest.raises(InputError, match="the limit is 4: shorten it"):
        generate(tmp_path / "b.jsonl", max_prompt_tokens=4)
    lone = tmp_path / "lone.jsonl"
    lone.write_bytes(whole[0].read_bytes())
    with pytest.raises(InputError, match="lone.facts.json, which says how it was made"):
        generate(lone)
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text(json.dumps({"step": 0, "text": "x"}) + "\n")
    with pytest.raises(InputError, match="not a file of self-generated completions"):
        read_generated(foreign, vocab_size=49152)
    with pytest.raises(InputError, match="no such file"):
        read_generated(tmp_path / "missing.jsonl", vocab_size=49152)


def test_an_answer_that_ends_is_whole(whole):
    """The stop token is learned, so the tuned model knows where an answer ends."""
    for one in whole[1]:
        assert one.finished == (2 in one.tokens) and np.all(np.diff([0, len(one.tokens)]) > 0)
