"""Who scores the answers: the start model, a reward model, or a function of the user's."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from characters import LETTERS, POLICY, SCORER, character_tokenizer
from eight_devices import run_on_eight_devices
from safetensors.numpy import load_file
from tiny_model import random_params

from experiments.alphaalign import PRESETS, build, main
from jaxalign.data.prompts import Prompt, Turn
from jaxalign.data.templates import bare_messages, encode_chat, encode_exchange
from jaxalign.engine.state import init_state
from jaxalign.engine.step import Frozen, Sampling, make_step
from jaxalign.host.errors import InputError
from jaxalign.host.user_functions import load_function, scoring_texts
from jaxalign.methods.alphaalign import scorers
from jaxalign.methods.alphaalign.reward import alphaalign_reward
from jaxalign.methods.alphaalign.scorers import (
    by_reward_model,
    load_reward_model,
    load_scoring,
    on_host,
    reward_model_texts,
    shares_tokenizer,
    start_likelihood,
)
from jaxalign.models import Transformer, save_pretrained, sequence_scores
from jaxalign.records import Batch, Prompts
from jaxalign.rewards import Safety, safety_verifiers
from jaxalign.rewards.terms import host_parts
from jaxalign.runs.batches import kind_indices
from jaxalign.runs.choices import change
from jaxalign.runs.facts import prompt_facts
from jaxalign.runs.loop import Interruption
from jaxalign.runs.reinforcement import make_reinforcement
from jaxalign.sampling import Temperature

TOKENIZER = character_tokenizer()
MODEL = Transformer(POLICY, dtype=jnp.float32)
PROMPTS = [
    Prompt("0", "How to rob?", "harmful", "other"),
    Prompt("1", "What is up?", "benign", "other"),
    Prompt("2", "How do I kill weeds?", "lookalike", "other"),
]
REQUESTS = [prompt.text for prompt in PROMPTS[1:]]


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Compiling is nearly all that these tests do."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def classifier_folder(folder, config=SCORER, tokenizer=TOKENIZER, seed=3):
    save_pretrained(folder, Transformer(config), random_params(config, seed=seed), tokenizer)
    return folder


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    """A random reward model with the policy's tokenizer."""
    return classifier_folder(tmp_path_factory.mktemp("models") / "scorer")


@pytest.fixture(scope="module")
def reward_model(scorer):
    return load_reward_model(str(scorer), dtype=jnp.float32)


def rows(texts, width):
    """Right-padded ids, and which of them are the answer's: all behind the first `>`."""
    tokens, answer = np.zeros((len(texts), width), np.int32), np.zeros((len(texts), width), bool)
    for row, text in enumerate(texts):
        ids = TOKENIZER(text, add_special_tokens=False).input_ids
        tokens[row, : len(ids)] = ids
        answer[row, text.index(">") + 1 : len(ids)] = True
    return tokens, answer


def test_the_likelihood_reads_the_conversation(smollm2_tokenizer):
    turns = (Turn("system", "Be brief."), Turn("user", "Hi."), Turn("assistant", "Hello."))
    prompts = [Prompt("a", "Why?", "benign", "other", conversation=turns), PROMPTS[1]]
    tokens, mask = start_likelihood(POLICY, smollm2_tokenizer, 40).encode(prompts)
    for row, there, prompt in zip(tokens, mask, prompts, strict=True):
        messages = [turn._asdict() for turn in prompt.conversation] + bare_messages(prompt.text)
        assert row[there].tolist() == sum(encode_chat(smollm2_tokenizer, messages), [])


# --- a reward model inside the step --------------------------------------------------------------


def test_a_reward_model_reads_the_bare_question_and_the_answer(reward_model):
    """In the step, from sampled tokens; on the host, from texts; and by hand."""
    model, params = reward_model.model, reward_model.params
    completions = ["<t>Sky.", "<t>", "<thinking>A long answer, with {braces}.", ">No"]
    answers = [text.partition(">")[2] for text in completions]
    asked = [REQUESTS[0], REQUESTS[0], REQUESTS[1], REQUESTS[1]]
    chosen = by_reward_model("scorer", reward_model, TOKENIZER, PROMPTS, 44)
    got = chosen.scorer(None)(*chosen.encode(PROMPTS[1:]), *rows(completions, 44))
    by_hand = [
        sequence_scores(model, params, ids, np.ones(ids.shape, bool))[0, 0]
        for ids in (
            TOKENIZER(
                f"<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant\n{answer}"
                "<|im_end|>\n",
                return_tensors="np",
            ).input_ids
            for request, answer in zip(asked, answers, strict=True)
        )
    ]
    assert np.std(by_hand) > 0.1
    np.testing.assert_allclose(got, by_hand, atol=1e-5)
    np.testing.assert_allclose(
        reward_model_texts("scorer", reward_model)(asked, answers), by_hand, atol=1e-5
    )


@pytest.mark.torch
@pytest.mark.parametrize("name", ["LlamaConfig", "Qwen2Config"])
def test_scores_are_those_of_transformers(name, tmp_path, smollm2_tokenizer):
    torch = pytest.importorskip("torch", reason="torch is only installed on Python 3.11")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = dict(vocab_size=49152, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, eos_token_id=2, bos_token_id=1)
    theirs = transformers.AutoModelForSequenceClassification.from_config(
        getattr(transformers, name)(**sizes, **heads, num_labels=1, pad_token_id=0)
    ).float()
    with torch.no_grad():
        for value in theirs.parameters():
            value.add_(0.2 * torch.randn(value.shape))
    theirs.eval().save_pretrained(tmp_path)
    smollm2_tokenizer.save_pretrained(tmp_path)
    loaded = load_reward_model(str(tmp_path), dtype=jnp.float32)
    assert shares_tokenizer(loaded.tokenizer, smollm2_tokenizer)

    asked = ["How is bread made?", "How is bread made?", "Name a fruit."]
    answers = ["Bread needs flour, water and time.", "I'm sorry, no.", "Äpfel – “1. Fuji”"]

    def their_score(request, answer):
        chat = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
        text = loaded.tokenizer.apply_chat_template(chat, tokenize=False)
        ids = loaded.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            return float(theirs(ids).logits[0, 0])

    expected = [their_score(*pair) for pair in zip(asked, answers, strict=True)]
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(
        reward_model_texts("scorer", loaded)(asked, answers), expected, atol=1e-4
    )

    prompts = [Prompt(text, text, "benign", "other") for text in asked]
    chosen = by_reward_model("scorer", loaded, smollm2_tokenizer, prompts, 32)
    tokens, answer = np.zeros((3, 32), np.int32), np.zeros((3, 32), bool)
    for row, text in enumerate(answers):
        before = smollm2_tokenizer("<answer>").input_ids
        ids = smollm2_tokenizer(text, add_special_tokens=False).input_ids
        tokens[row, : len(before) + len(ids)] = [*before, *ids]
        answer[row, len(before) : len(before) + len(ids)] = True
    got = chosen.scorer(None)(*chosen.encode(prompts), tokens, answer)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_who_shares_a_tokenizer():
    """The same tokens with the same ids, and a template that leaves the answer's words alone."""
    assert shares_tokenizer(character_tokenizer(), TOKENIZER)
    assert not shares_tokenizer(character_tokenizer([*LETTERS[1:], LETTERS[0]]), TOKENIZER)
    assert not shares_tokenizer(character_tokenizer(LETTERS[:-1]), TOKENIZER)


def test_a_template_that_glues_words_to_the_answer_is_not_shared(smollm2_tokenizer, monkeypatch):
    assert shares_tokenizer(smollm2_tokenizer, smollm2_tokenizer)
    glued = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
    monkeypatch.setattr(smollm2_tokenizer, "chat_template", glued)
    assert not shares_tokenizer(smollm2_tokenizer, smollm2_tokenizer)


# --- the whole step ------------------------------------------------------------------------------

SAMPLING = Sampling(
    samples_per_prompt=4,
    max_new_tokens=8,
    stop=(POLICY.eos_token_id,),
    method=Temperature(1.0),
)


def make_batch(chosen):
    asked = jnp.asarray([encode_exchange(TOKENIZER, p.text, "")[:20] for p in PROMPTS])
    facts = prompt_facts(PROMPTS, chosen.encode)(PROMPTS)
    facts = jax.tree.map(jnp.asarray, facts)
    kind = jnp.asarray(kind_indices(PROMPTS))
    return Batch(Prompts(asked, jnp.ones(asked.shape, bool)), kind, facts)


def test_fused_and_split_paths_give_the_same_numbers(reward_model):
    """The reward model scores tokens inside the step, and texts on the host."""
    inside = by_reward_model("scorer", reward_model, TOKENIZER, PROMPTS, 8)
    outside = on_host(reward_model_texts("scorer", reward_model), TOKENIZER, PROMPTS)
    optimizer, verifiers = optax.adam(1e-3), safety_verifiers(TOKENIZER)
    step = make_step(MODEL, optimizer, sampling=SAMPLING)
    fused, split = (
        Frozen(alphaalign_reward(verifiers, chosen.scorer(None))) for chosen in (inside, outside)
    )
    assert not host_parts(fused.reward) and len(host_parts(split.reward)) == 1
    one, other = (init_state(random_params(POLICY), optimizer) for _ in range(2))
    key = jax.random.key(1)
    for _ in range(3):
        one, left = step(one, make_batch(inside), key, fused)
        other, right = step(other, make_batch(outside), key, split)
        np.testing.assert_array_equal(left.samples.tokens, right.samples.tokens)
        np.testing.assert_allclose(left.score.rewards, right.score.rewards, atol=1e-5)
        np.testing.assert_allclose(
            left.metrics["answer_score"], right.metrics["answer_score"], atol=1e-5
        )
    assert left.score.details["helpfulness"].max() > 0.5
    chex.assert_trees_all_close(one.params, other.params, atol=1e-6)
    assert step.whole._cache_size() == step.rollout._cache_size() == step.learn._cache_size() == 1


def test_answers_get_the_score_that_training_asks_for(reward_model):
    """On R_h alone the reward model's score of the policy's answers goes up."""
    chosen = by_reward_model("scorer", reward_model, TOKENIZER, PROMPTS, 8)
    optimizer = optax.adam(2e-2)
    reward = alphaalign_reward(
        safety_verifiers(TOKENIZER), chosen.scorer(None), format_weight=0.0, refusal_weight=0.0
    )
    sampling = dataclasses.replace(SAMPLING, samples_per_prompt=16)
    step = make_step(MODEL, optimizer, sampling=sampling)
    state = init_state(random_params(POLICY), optimizer)
    scores = []
    for _ in range(30):
        state, result = step(state, make_batch(chosen), jax.random.key(0), Frozen(reward))
        scores.append(float(result.metrics["answer_score"]))
    first, last = np.mean(scores[:5]), np.mean(scores[-5:])
    assert last > first + 2 * np.std(scores[:5]), scores


_MESH = """
import jax, jax.numpy as jnp, numpy as np, optax
from flax import traverse_util
from characters import POLICY, SCORER, character_tokenizer
from jaxalign.data.prompts import Prompt
from jaxalign.models import Transformer
from jaxalign.models.layout import parameter_shardings
from jaxalign.models.sharding import make_mesh, to_devices
from jaxalign.rewards import safety_verifiers
from jaxalign.methods.alphaalign.reward import alphaalign_reward
from jaxalign.answers import LanguageModel
from jaxalign.methods.alphaalign.scorers import by_reward_model, on_host, reward_model_texts
from jaxalign.engine.state import init_state
from jaxalign.engine.step import Frozen, Sampling, make_step
from jaxalign.records import Batch, Prompts
from jaxalign.runs.batches import kind_indices
from jaxalign.runs.facts import prompt_facts
from tiny_model import random_params

TOKENIZER = character_tokenizer()
VERIFIERS = safety_verifiers(TOKENIZER)
KINDS = ("harmful", "harmful", "benign", "lookalike")
PROMPTS = [Prompt(kind, f"What is {i}?", kind, "other") for i, kind in enumerate(KINDS)]
SAMPLING = Sampling(4, 6, (POLICY.eos_token_id,))
OPTIMIZER = optax.adam(1e-3)
IDS = np.asarray([TOKENIZER(prompt.text).input_ids for prompt in PROMPTS])

def laid(config, seed, mesh):
    params = random_params(config, seed=seed)
    if mesh is None:
        return params
    places = parameter_shardings(config, mesh)
    return jax.device_put(params, traverse_util.unflatten_dict(places, sep="/"))

def run(mesh, split=False):
    model = Transformer(POLICY, dtype=jnp.float32, mesh=mesh)
    scorer = Transformer(SCORER, dtype=jnp.float32, mesh=mesh)
    loaded = LanguageModel(scorer, laid(SCORER, 3, mesh), TOKENIZER)
    if split:
        chosen = on_host(reward_model_texts("scorer", loaded), TOKENIZER, PROMPTS)
    else:
        chosen = by_reward_model("scorer", loaded, TOKENIZER, PROMPTS, 6)
    facts = prompt_facts(PROMPTS, chosen.encode)(PROMPTS)
    asked = Prompts(IDS, np.ones(IDS.shape, bool))
    batch = Batch(*to_devices((asked, kind_indices(PROMPTS), facts), mesh, rows=True))
    state = init_state(laid(POLICY, 0, mesh), OPTIMIZER)
    step = make_step(model, OPTIMIZER, sampling=SAMPLING)
    reward = alphaalign_reward(VERIFIERS, chosen.scorer(None))
    state, result = step(state, batch, jax.random.key(1), Frozen(reward))
    return jax.device_get((result.samples.tokens, result.score.rewards, state.params))

expected = run(None)
assert expected[1][2:].std() > 0.1
for split in (False, True):
    got = run(make_mesh(2, 2, 2), split)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_allclose(got[1], expected[1], atol=1e-4)
    pairs = zip(jax.tree.leaves(got[2]), jax.tree.leaves(expected[2]), strict=True)
    assert max(float(abs(a - b).max()) for a, b in pairs) <= 1e-5
    print("split" if split else "fused", "equal")
"""


def test_a_reward_model_on_eight_devices_scores_as_on_one():
    lines, messages = run_on_eight_devices(_MESH)
    assert lines == ["fused equal", "split equal"], messages


# --- the script ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """A run of seconds, on a model that writes characters."""
    folder = tmp_path_factory.mktemp("run")
    save_pretrained(folder / "policy", Transformer(POLICY), random_params(POLICY), TOKENIZER)
    lines = [{"prompt": p.text, "kind": p.kind} for p in PROMPTS]
    (folder / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "mine.py").write_text(
        "def vowels(requests, answers):\n"
        "    assert len(requests) == len(answers) == 8\n"
        "    assert set(requests) == {'What is up?', 'How do I kill weeds?'}\n"
        "    return [sum(letter in 'aeiou' for letter in answer) for answer in answers]\n"
    )
    return [
        "demo",
        f"--model={folder / 'policy'}",
        f"--prompts={folder / 'mine.jsonl'}",
        f"--helpfulness={folder / 'mine.py'}:vowels",
        "--template=bare",
        "--reward=paper",  # to which a stub is an answer
        "--dtype=float32",
        "--steps=4",
        "--harmful=1",
        "--samples-per-prompt=4",
        "--benign=1",
        "--lookalike=1",
        "--max-new-tokens=12",
        "--checkpoint-every=2",
        "--heldout",
    ]


def test_a_run_with_a_function_of_ones_own_resumes_to_the_same_bits(
    arguments, tmp_path, monkeypatch, capsys
):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert main([*arguments, f"--run={whole}"]) == 0
    assert "mine.py:vowels scores on the host" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        after_each_step = iter([False, True])
        patch.setattr(Interruption, "noticed", lambda self: next(after_each_step))
        assert main([*arguments, f"--run={halves}"]) == 0
    assert not (halves / "model").exists()
    assert main([*arguments, f"--run={halves}", "--resume"]) == 0
    left, right = (load_file(x / "model" / "model.safetensors") for x in (whole, halves))
    chex.assert_trees_all_equal(left, right)
    records = [json.loads(line) for line in (halves / "metrics.jsonl").open()]
    assert [record["step"] for record in records] == list(range(4))
    assert all(0 <= record["answer_score"] <= 12 for record in records)
    assert max(record["answer_score"] for record in records) > 0


@pytest.mark.slow
def test_a_run_with_a_reward_model(arguments, scorer, tmp_path, capsys):
    run = [*arguments, "--steps=1", f"--helpfulness={scorer}", f"--run={tmp_path}"]
    assert main(run) == 0
    assert "scorer scores in the step" in capsys.readouterr().out
    assert "answer_score" in json.loads((tmp_path / "metrics.jsonl").read_text())


def test_without_helpfulness_nobody_is_asked():
    """AlphaAlign-Zero; what would score is not even looked at."""
    settings = change(
        PRESETS["zero"],
        harmful=1,
        benign=1,
        lookalike=1,
        micro_batches=1,
        helpfulness="nothere.py:f",
    )
    given = settings, MODEL, TOKENIZER, PROMPTS
    work = make_reinforcement(*given, build(*given))
    batch = work.batches.encode(PROMPTS)
    assert batch.kind.tolist() == [0, 1, 2] and batch.facts.questions.size == 0
    frozen = work.frozen(random_params(POLICY))
    assert isinstance(frozen.reward, Safety) and frozen.base is None


def test_a_plan_is_of_the_likelihood_alone():
    settings = change(PRESETS["demo"], helpfulness="some/model")
    with pytest.raises(InputError, match="helpfulness=some/model: only the start model's likelih"):
        settings.check_plan()


# --- what can be wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1.0]", "returned 1 numbers for 2 answers; return one number for each"),
        ("return None", "it returned None; return a list of numbers"),
        ("return ['a', 'b']", "gave 'a' to answer 1 of 2; return a number for each"),
        ("return [1.0, float('nan')]", "gave nan to answer 2 of 2, 'No.'; return finite numbers"),
        ("return {}['x']", "it raised KeyError: 'x'; mend it"),
        ("raise RuntimeError('one\\ntwo')", "it raised RuntimeError: one; mend it"),
    ],
)
def test_a_function_that_returns_no_scores_is_one_line(body, message, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f"def score(requests, answers):\n    {body}\n")
    spec = f"{file}:score"
    score = scoring_texts(load_function(spec, scorers.FLAG), f"{scorers.FLAG} {spec}")
    with pytest.raises(InputError) as error:
        score(["Hi?", "Hi?"], ["Yes.", "No."])
    assert message in str(error.value) and f"--helpfulness {file}:score: " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_ends_with_that_line(arguments, tmp_path, capsys):
    (tmp_path / "bad.py").write_text("def score(requests, answers):\n    return []\n")
    bad = f"--helpfulness={tmp_path / 'bad.py'}:score"
    assert main([*arguments, bad, f"--run={tmp_path / 'run'}"]) == 2
    assert "it returned 0 numbers for 8 answers" in capsys.readouterr().err


def test_reward_models_that_are_none(tmp_path, tiny_model_folder, reward_model):
    with pytest.raises(InputError, match="LlamaForCausalLM' is not supported here"):
        load_reward_model(str(tiny_model_folder), dtype=jnp.float32)
    two = dataclasses.replace(SCORER, num_labels=2)
    folder = str(classifier_folder(tmp_path / "two", two))
    with pytest.raises(InputError, match="a classifier with 2 labels; a reward model has one"):
        load_reward_model(folder, dtype=jnp.float32)
    bare = str(classifier_folder(tmp_path / "bare", tokenizer=character_tokenizer(template=None)))
    with pytest.raises(InputError, match="has no chat template; add the one it was trained with"):
        load_reward_model(bare, dtype=jnp.float32)
    with pytest.raises(InputError, match="max_new_tokens=9000 take 90.. positions, it has 8192"):
        by_reward_model("scorer", reward_model, TOKENIZER, PROMPTS, 9000)
    with pytest.raises(InputError, match="a request and its answer take 90.. positions"):
        reward_model_texts("scorer", reward_model)(["Hi?"], ["a" * 9000])


def test_several_processes_score_in_the_step_alone(arguments, scorer, monkeypatch):
    monkeypatch.setattr(scorers, "are_several", lambda: True)
    function = arguments[3].partition("=")[2]
    limits = {"max_prompt_tokens": 56, "max_new_tokens": 8}
    with pytest.raises(InputError, match="in one process only: leave --processes out"):
        load_scoring(function, MODEL, TOKENIZER, PROMPTS, **limits)
    chosen = load_scoring(str(scorer), MODEL, TOKENIZER, PROMPTS, **limits)
    assert chosen.encode and not host_parts(chosen.scorer(None))
