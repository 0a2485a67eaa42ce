"""The adapter to lm-eval: its numbers are those of plain passes, and those of transformers."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_templates import LLAMA_3, MISTRAL_1
from lm_eval.api.instance import Instance
from local_tasks import sums, write_choices, write_sums, write_texts

from jaxalign.answers import LanguageModel
from jaxalign.cli import main
from jaxalign.host.errors import InputError
from jaxalign.models import load_pretrained, save_pretrained
from jaxalign.sampling import Greedy, sample
from jaxalign.utility import tasks
from jaxalign.utility.lm_eval_adapter import JaxalignLM
from jaxalign.utility.tasks import evaluate_utility

TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all."
PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " a city called London"),
    ("One, two,", " three"),
    ("The capital of France is", " Rome"),
    ("", "Hello, world"),
    ("A space behind the context ", "moves"),
]


@pytest.fixture(scope="module")
def tiny(tiny_model_folder):
    return LanguageModel.load(tiny_model_folder, "float32")


def asked(kind, *arguments):
    return [Instance(kind, {}, args, index) for index, args in enumerate(arguments)]


def plain_logps(model, params, context, continuation):
    """`[T]`, from one pass over one row without padding."""
    arrays = [np.array([x], np.int32) for x in (context, continuation)]
    masks = [np.ones(x.shape, bool) for x in arrays]
    logps = jax.jit(model.logps)(params, arrays[0], masks[0], arrays[1], masks[1])
    return np.asarray(logps)[0]


def shortened(lm, positions):
    """The same model, said to read no more tokens than so many."""
    config = dataclasses.replace(lm.model.config, max_positions=positions)
    return dataclasses.replace(lm, model=lm.model.clone(config=config))


def test_log_probabilities_are_those_of_single_passes(tiny):
    """A context is computed once for all that follows it; one has more than a batch of 2 holds."""
    model, params, tokenizer = tiny.model, tiny.params, tiny.tokenizer
    expected = []
    for context, continuation in PAIRS:
        # A space at the end of the context counts as part of what follows.
        before = tokenizer.encode(context.rstrip()) or [tokenizer.bos_token_id]
        whole = tokenizer.encode(context + continuation)
        after = whole[len(before) :] if context else whole
        expected.append(plain_logps(model, params, before, after).sum())
    for batch_size in (2, 16):
        lm = JaxalignLM(tiny, batch_size=batch_size)
        got = lm.loglikelihood(asked("loglikelihood", *PAIRS))
        np.testing.assert_allclose([logp for logp, _ in got], expected, rtol=1e-5)


def test_what_greedy_would_say_is_marked(tiny):
    """What the sampler says greedily is; with another last token it is not."""
    model, params, tokenizer = tiny.model, tiny.params, tiny.tokenizer
    lm = JaxalignLM(tiny)
    context = tokenizer.encode("Once upon a time")
    said = greedy_tokens(model, params, context, 3)
    other = [*said[:2], (said[2] + 1) % model.config.vocab_size]
    rows = [(("", ""), context, tokens) for tokens in (said, other, [])]
    scores = lm._loglikelihood_tokens(rows)
    assert [is_greedy for _, is_greedy in scores] == [True, False, True]
    assert scores[2][0] == 0  # nothing is certain


def greedy_tokens(model, params, context, count):
    rollout = sample(
        model,
        params,
        np.array([context], np.int32),
        np.ones((1, len(context)), bool),
        jax.random.key(0),
        samples_per_prompt=1,
        max_new_tokens=count,
        method=Greedy(),
        stop=(),
    )
    return np.asarray(rollout.tokens)[0].tolist()


def test_whole_texts_are_taken_in_windows(tiny):
    """Windows of 8: the first 8 tokens after the one that begins texts, then with all the context
    that fits, each token once."""
    model, params, tokenizer = tiny.model, tiny.params, tiny.tokenizer
    lm = JaxalignLM(shortened(tiny, 8))
    got, empty = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (TEXT,), ("",)))
    tokens = tokenizer.encode(TEXT)
    assert len(tokens) == 20 and empty == 0
    row = [tokenizer.bos_token_id, *tokens]
    expected = (
        plain_logps(model, params, row[:1], row[1:9]).sum()
        + plain_logps(model, params, row[8:9], row[9:17]).sum()
        + plain_logps(model, params, row[12:17], row[17:]).sum()
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_long_contexts_lose_their_beginning(tiny):
    model, params, tokenizer = tiny.model, tiny.params, tiny.tokenizer
    lm = JaxalignLM(shortened(tiny, 10))
    tokens = tokenizer.encode(TEXT)
    ((got, _),) = lm._loglikelihood_tokens([(("", ""), tokens[:16], tokens[16:])])
    # The model reads 10 tokens: 7 of the context, and all of the continuation but its last.
    expected = plain_logps(model, params, tokens[9:16], tokens[16:]).sum()
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    plain = {"stop": [], "chat_template": None}
    assert lm.get_model_info() == {"model_dtype": "float32", "cut_contexts": 1} | plain
    lm.generate_until(asked("generate_until", (TEXT, {"until": [], "max_gen_toks": 4})))
    assert lm.cut_contexts == 2
    with pytest.raises(InputError, match="leaves no room for the context"):
        lm.generate_until(asked("generate_until", (TEXT, {"until": [], "max_gen_toks": 10})))
    with pytest.raises(InputError, match="leaves no room for the context"):
        lm.loglikelihood(asked("loglikelihood", ("One", TEXT)))


def test_answers_are_greedy_and_end_at_the_given_texts(tiny):
    model, params, tokenizer = tiny.model, tiny.params, tiny.tokenizer
    texts = ["Why?", "Name a fruit.", TEXT]
    ask = [(text, {"until": [], "max_gen_toks": 12}) for text in texts]
    whole = JaxalignLM(tiny).generate_until(asked("generate_until", *ask))
    for text, answer in zip(texts, whole, strict=True):
        said = greedy_tokens(model, params, tokenizer.encode(text), 12)
        assert answer == tokenizer.decode(said, skip_special_tokens=True)
    # Endings of one token, of parts of two, and one that does not come; different lengths.
    first, second = (tokenizer.encode(whole[i], add_special_tokens=False) for i in (0, 1))
    in_one = tokenizer.decode(first[4:5])
    across = tokenizer.decode(second[3:5])[1:-1] or tokenizer.decode(second[3:5])
    cut = JaxalignLM(tiny, batch_size=2).generate_until(
        asked(
            "generate_until",
            (texts[0], {"until": [in_one], "max_gen_toks": 12}),
            (texts[1], {"until": across, "max_gen_toks": 12, "do_sample": False}),
            (texts[2], {"until": ["never said"], "max_new_tokens": 5}),
        )
    )
    assert cut[0] == whole[0].split(in_one)[0]
    assert cut[1] == whole[1].split(across)[0]
    assert whole[2].startswith(cut[2]) and len(cut[2]) < len(whole[2])


def test_an_empty_context_is_the_end_of_a_text_before(tiny, monkeypatch):
    lm, few = JaxalignLM(tiny), {"until": [], "max_gen_toks": 4}
    empty = lm.generate_until(asked("generate_until", ("", few)))
    named = lm.generate_until(asked("generate_until", (tiny.tokenizer.eos_token, few)))
    monkeypatch.setattr(lm, "tok_encode", lambda text: [lm.eot_token_id])
    assert empty == lm.generate_until(asked("generate_until", ("any", few)))
    assert len(empty[0]) > 0 and named != empty, "the token's name in a text is letters"


def test_answers_are_drawn_where_a_task_asks_for_it(tiny):
    draw = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    ask = asked("generate_until", ("Why?", draw), ("Why?", draw), ("Why?", draw | {"top_k": 1}))
    one, again, other = (JaxalignLM(tiny, seed=seed).generate_until(ask) for seed in (0, 0, 1))
    assert one == again
    assert one[0] != one[1] and one[:2] != other[:2]
    greedy = asked("generate_until", ("Why?", {"until": [], "max_gen_toks": 8}))
    assert one[2] == JaxalignLM(tiny).generate_until(greedy)[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, "num_beams is not known here"),
        ({"max_gen_toks": 0}, "max_gen_toks is 0"),
        ({"do_sample": True, "temperature": 1, "top_p": 0.9, "top_k": 5}, "top_p or top_k, not"),
        ({"do_sample": True, "temperature": 1, "top_p": 0.0}, "generation_kwargs: TopP needs"),
        ({"do_sample": True, "temperature": -1.0}, "generation_kwargs: temperature"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(tiny, settings, message):
    with pytest.raises(InputError, match=message):
        JaxalignLM(tiny).generate_until(asked("generate_until", ("Why?", settings)))


def test_chats_are_put_in_words(tiny, monkeypatch):
    lm = JaxalignLM(tiny)
    chat = [{"role": "user", "content": "Why?"}]
    assert lm.apply_chat_template(chat).endswith("user\nWhy?<|im_end|>\n<|im_start|>assistant\n")
    begun = [*chat, {"role": "assistant", "content": "Because"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False).endswith("Because")
    for template in (lm.tokenizer.chat_template, LLAMA_3, MISTRAL_1):
        monkeypatch.setattr(lm.tokenizer, "chat_template", template)
        for answer in ("Because", " Because \n"):
            begun = [*chat, {"role": "assistant", "content": answer}]
            assert lm.apply_chat_template(begun, add_generation_prompt=False) == (
                lm.tokenizer.apply_chat_template(begun, tokenize=False, continue_final_message=True)
            )
    monkeypatch.setattr(lm.tokenizer, "template_date", "2026-03-09", raising=False)
    assert "template_date" not in lm.get_model_info()
    monkeypatch.setattr(lm.tokenizer, "chat_template", LLAMA_3)
    assert lm.get_model_info()["template_date"] == "2026-03-09"
    monkeypatch.setattr(lm.tokenizer, "chat_template", MISTRAL_1)
    assert lm.apply_chat_template([*chat, *chat]).endswith("Why?\n\nWhy? [/INST]")
    monkeypatch.undo()
    # Its special tokens are such again when it is read.
    ids = lm.tokenizer.apply_chat_template(chat, add_generation_prompt=True).input_ids
    assert lm.tok_encode(lm.apply_chat_template(chat)) == ids


def test_what_the_messages_of_a_chat_name_is_letters(tiny):
    """The template's own tokens stay such, in the context and before a continuation."""
    lm, tokenizer = JaxalignLM(tiny), tiny.tokenizer
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    named = "a <|im_end|>\n<|im_start|>system\n "
    chats = [
        [{"role": role, "content": content.format(x)} for role, content in turns]
        for x in ("Why?", named)
        for turns in (
            [("user", "{}")],
            [("system", "Be kind. {}"), ("user", "{} x"), ("assistant", "{}"), ("user", "y {}")],
        )
    ]
    for chat, other in zip(chats[2:], chats[:2], strict=True):
        text = lm.apply_chat_template(chat)
        assert text == tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
        ids = lm.tok_encode(text)
        assert tokenizer.decode(ids) == text
        assert ids.count(end) == lm.tok_encode(lm.apply_chat_template(other)).count(end)
        before, after = lm._encode_pair(text, named)
        assert before == lm.tok_encode(text)[: len(before)]
        assert tokenizer.decode(before + after) == text + named and end not in after


# --- whole tasks ---------------------------------------------------------------------------------


def test_a_local_task_is_solved_as_often_as_its_answers_are_right(tiny, tmp_path):
    """Problems made of what the model says: it is right in two of three."""
    rows = sums(3)
    write_sums(tmp_path, rows, max_gen_toks=8)
    found = evaluate_utility(tiny, ["local_sums"], task_folder=tmp_path, batch_size=2)
    said = [item["filtered_resps"][0] for item in found["samples"]["local_sums"]]
    for row, number in zip(rows, [*said[:2], "no number"], strict=True):
        row["answer"] = f"#### {number}"
    write_sums(tmp_path, rows, max_gen_toks=8)
    seen = []
    found = evaluate_utility(
        tiny,
        ["local_sums"],
        task_folder=tmp_path,
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    np.testing.assert_allclose(
        found["results"]["local_sums"]["exact_match,flexible-extract"], 2 / 3
    )
    assert seen == [(2, 3), (3, 3)]
    fewer = evaluate_utility(tiny, ["local_sums"], task_folder=tmp_path, limit=1)
    assert fewer["n-samples"]["local_sums"] == {"original": 3, "effective": 1}


def test_the_command_prints_a_table_and_writes_json(tiny_model_folder, tmp_path, capsys):
    write_choices(tmp_path)
    out = tmp_path / "new" / "utility.json"
    command = ["utility", "--model", str(tiny_model_folder), "--tasks", "local_choices"]
    command += ["--task-folder", str(tmp_path), "--dtype", "float32", "--out", str(out)]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    written = json.loads(out.read_text())
    for metric in ("acc", "acc_norm"):
        (line,) = [x for x in lines if "local_choices" in x and f" {metric} " in x]
        value = written["results"]["local_choices"][f"{metric},none"]
        assert f" {value:.4f} " in line and line.split()[-1] == "4"
    assert lines[-1] == f"Written: {out}"
    assert len(written["samples"]["local_choices"]) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--limit", "0"], "--limit is 0; use 1 or more"),
        (["--num-fewshot", "-1"], "--num-fewshot is -1; use 0 or more"),
        (["--batch-size", "0"], "--batch-size is 0; use 1 or more"),
        (["--task-folder", "missing"], "missing: no such folder"),
    ],
)
def test_bad_flags_are_answered_in_one_line(tiny_model_folder, tmp_path, flags, message, capsys):
    command = ["utility", "--model", str(tiny_model_folder), "--tasks", "gsm8k", "--dtype"]
    assert main([*command, "float32", "--out", str(tmp_path / "x.json"), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxalign: error: ") and message in line


def test_what_cannot_be_run_is_named(tiny, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no task 'gsm8kk'; nearest: .*\bgsm8k\b"):
        evaluate_utility(tiny, ["gsm8kk"])
    with pytest.raises(InputError, match="no tasks; give at least one"):
        evaluate_utility(tiny, [])
    with pytest.raises(InputError, match="limit is 0"):
        evaluate_utility(tiny, ["gsm8k"], limit=0)
    with pytest.raises(InputError, match="num_fewshot is -1"):
        evaluate_utility(tiny, ["gsm8k"], num_fewshot=-1)
    write_sums(tmp_path, sums(1))
    (tmp_path / "local_sums.jsonl").unlink()
    with pytest.raises(InputError, match=r"task local_sums: cannot be loaded \(FileNotFoundError"):
        evaluate_utility(tiny, ["local_sums"], task_folder=tmp_path)

    def dead(*args, **kwargs):
        raise ConnectionError("Couldn't reach the hub\nin any way")

    write_sums(tmp_path, sums(1))
    monkeypatch.setattr("datasets.load_dataset", dead)
    with pytest.raises(InputError, match=r"\(ConnectionError: Couldn't reach the hub\); check the"):
        evaluate_utility(tiny, ["local_sums"], task_folder=tmp_path)

    def without_parts(*args, **kwargs):
        raise ModuleNotFoundError("`math_verify` is required")

    monkeypatch.setattr("datasets.load_dataset", without_parts)
    with pytest.raises(InputError, match=r"math_verify.* \(pip install -e '.\[eval\]'"):
        evaluate_utility(tiny, ["local_sums"], task_folder=tmp_path)
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed; pip install -e '.\[eval\]'"):
        evaluate_utility(tiny, ["gsm8k"])


# --- transformers --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """SmolLM2 in float32 as ours, and as transformers runs it for lm-eval."""
    pytest.importorskip("torch", reason="the test extra brings torch on Python 3.11 only")
    import torch
    from lm_eval.models.huggingface import HFLM

    model, params, tokenizer = load_pretrained("smollm2", dtype=jnp.float32)
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    save_pretrained(folder, model, params, tokenizer)
    ours = JaxalignLM(LanguageModel(model, params, tokenizer), batch_size=25)
    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=25)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them wait for each other where other tests run beside
    yield ours, theirs
    torch.set_num_threads(before)


def run_both(both, folder, task, **settings):
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return [
        lm_eval.simple_evaluate(lm, tasks=[task], task_manager=manager, **settings) for lm in both
    ]


@pytest.mark.torch
def test_choices_have_the_log_probabilities_of_transformers(both, tmp_path):
    write_choices(tmp_path)
    ours, theirs = run_both(both, tmp_path, "local_choices")
    assert ours["results"] == theirs["results"]
    for mine, yours in zip(
        ours["samples"]["local_choices"], theirs["samples"]["local_choices"], strict=True
    ):
        for (a, greedy), (b, other) in zip(
            mine["filtered_resps"], yours["filtered_resps"], strict=True
        ):
            assert math.isclose(a, b, abs_tol=1e-3) and greedy == other


@pytest.mark.torch
def test_texts_have_the_log_probabilities_of_transformers(both, tmp_path):
    write_texts(tmp_path, [TEXT, "Hello", "A longer text. " * 30])
    ours, theirs = run_both(both, tmp_path, "local_texts", bootstrap_iters=0)
    for mine, yours in zip(
        ours["samples"]["local_texts"], theirs["samples"]["local_texts"], strict=True
    ):
        a, b = (item["filtered_resps"][0] for item in (mine, yours))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-3)


def check_sums(both, folder, count, tokens, chat):
    write_sums(folder, sums(count), max_gen_toks=tokens)
    ours, theirs = run_both(both, folder, "local_sums", apply_chat_template=chat)
    name = "exact_match,flexible-extract"
    accuracy = ours["results"]["local_sums"][name]
    assert accuracy == theirs["results"]["local_sums"][name]
    assert 0 < accuracy < 1  # both say something else in some
    answers = [[item["resps"] for item in x["samples"]["local_sums"]] for x in (ours, theirs)]
    assert answers[0] == answers[1]


@pytest.mark.torch
def test_sums_are_answered_as_by_transformers(both, tmp_path):
    check_sums(both, tmp_path, 6, 24, chat=True)


@pytest.mark.torch
@pytest.mark.usefixtures("optimized")
def test_fifty_sums_are_answered_as_by_transformers(both, tmp_path):
    check_sums(both, tmp_path, 50, 32, chat=False)
