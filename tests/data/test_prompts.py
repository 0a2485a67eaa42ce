"""Our own prompts meet their promises, and training walks through prompts without a gap."""

import collections
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from near_duplicates import near_duplicates

from experiments.benchmarks.prompt_forms import areas, new_openings, out_of_fold
from jaxalign.data import (
    CATEGORIES,
    KINDS,
    Kind,
    Prompt,
    batch_at,
    builtin_prompts,
)
from jaxalign.data.order import grouped
from jaxalign.data.prompts import mislabel
from jaxalign.data.sources import load_requests
from jaxalign.data.templates import alphaalign_messages, encode_prompts
from jaxalign.host.errors import InputError

PUBLIC_DATA = Path(__file__).parents[2].parent / "shared" / "data"
PUBLIC_SUITES = (
    "advbench_harmful_behaviors.csv",
    "strongreject_dataset.csv",
    "xstest_prompts.csv",
    "alpaca_seed_tasks.jsonl",
    "mt_bench_question.jsonl",
)


def make_prompts(**sizes: int) -> list[Prompt]:
    """So many prompts of each kind, called harmful-0, harmful-1 and so on."""
    return [
        Prompt(f"{kind}-{i}", f"text {i}", kind, "general")
        for kind in KINDS
        for i in range(sizes.get(kind, 0))
    ]


def ids(prompts: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in prompts]


# The built-in prompts.


@pytest.fixture(scope="module")
def train() -> list[Prompt]:
    return builtin_prompts("train")


@pytest.fixture(scope="module")
def heldout() -> list[Prompt]:
    return builtin_prompts("heldout")


def test_there_are_enough_prompts_of_each_kind(train, heldout):
    trained = collections.Counter(prompt.kind for prompt in train)
    held = collections.Counter(prompt.kind for prompt in heldout)
    assert set(trained) == set(held) == set(KINDS)
    assert len(train) >= 2000 and min(trained.values()) >= 600
    assert min(held.values()) >= 150 and len(set(held.values())) == 1


def test_every_category_is_known_and_every_hazard_is_in_both_splits(train, heldout):
    assert {prompt.category for prompt in train + heldout} <= set(CATEGORIES)
    hazards = set(CATEGORIES) - {"general"}
    assert len(hazards) == 12
    for split in (train, heldout):
        for kind in ("harmful", "lookalike"):
            assert {prompt.category for prompt in split if prompt.kind == kind} == hazards
        assert {prompt.category for prompt in split if prompt.kind == "benign"} == {"general"}
    held = collections.Counter(p.category for p in heldout if p.is_harmful)
    assert min(held.values()) >= 12


def test_a_frame_has_one_prompt_of_each_kind(train, heldout):
    """The minimal pairs have no benign prompt; all of the held-out prompts are in triples."""
    for frame in grouped([p for p in train if p.pair], lambda p: p.pair).values():
        kinds = [prompt.kind for prompt in frame]
        assert kinds in (["harmful", "lookalike"], ["harmful", "benign", "lookalike"])
        assert len({p.category for p in frame} - {"general"}) == 1
    for frame in grouped(heldout, lambda p: p.pair).values():
        assert [prompt.kind for prompt in frame] == list(KINDS)
        assert frame[0].category == frame[2].category
    assert not {p.pair for p in train if p.pair} & {p.pair for p in heldout}
    assert sum(p.pair is not None for p in train) >= 800


def test_ids_and_texts_are_unique_and_clean(train, heldout):
    prompts = train + heldout
    assert len(set(ids(prompts))) == len(prompts)
    assert len({prompt.text.lower() for prompt in prompts}) == len(prompts)
    assert all(prompt.text and prompt.text == prompt.text.strip() for prompt in prompts)


def test_no_heldout_prompt_is_nearly_a_training_prompt(train, heldout):
    pairs = near_duplicates([p.text for p in train], [p.text for p in heldout])
    assert [(train[i].id, heldout[j].id, round(score, 2)) for i, j, score in pairs] == []


def test_prompts_fit_the_experiments(train, heldout, smollm2_tokenizer):
    texts = [prompt.text for prompt in train + heldout]
    encode_prompts(smollm2_tokenizer, alphaalign_messages, texts, max_tokens=56)
    words = [len(prompt.text.split()) for prompt in heldout]
    assert np.mean(np.array(words) >= 12) >= 1 / 3


def test_form_tells_nothing_of_the_heldout_prompts(train, heldout):
    """Which are harmful must be read from what they ask for; see docs/data.md."""
    assert max(areas(heldout, out_of_fold(heldout))) <= 0.60
    assert new_openings(train, heldout) >= 1 / 3


@pytest.mark.parametrize("file", PUBLIC_SUITES)
def test_no_prompt_of_ours_is_nearly_one_of_a_public_suite(train, heldout, file):
    """They measure what was trained, so they must be of other hands."""
    if not (PUBLIC_DATA / file).is_file():
        pytest.skip(f"public data not here: ../shared/data/{file}")
    public = [request.text for request in load_requests(str(PUBLIC_DATA / file))]
    pairs = near_duplicates([p.text for p in train + heldout], public)
    assert [((train + heldout)[i].id, public[j]) for i, j, _ in pairs] == []


def test_order_is_stable_and_goes_by_kind(train):
    assert builtin_prompts("train") == train
    kinds = [prompt.kind for prompt in train]
    assert kinds == sorted(kinds, key=KINDS.index)


def test_only_harmful_prompts_are_harmful():
    kinds = {prompt.kind: prompt.is_harmful for prompt in make_prompts(**dict.fromkeys(KINDS, 1))}
    assert kinds == {"harmful": True, "benign": False, "lookalike": False}


def test_unknown_split_is_an_input_error():
    with pytest.raises(InputError, match="'test' does not exist; use 'train' or 'heldout'"):
        builtin_prompts("test")


# Near duplicates.


def test_similarity_is_shared_words_over_all_words():
    # {how, to, bake, bread} and {how, to, bake, a, cake}: 3 shared of 6.
    pairs = near_duplicates(["How to bake BREAD?"], ["how to bake a cake"], threshold=0.5)
    assert pairs == [(0, 0, 0.5)]
    assert near_duplicates(["How to bake BREAD?"], ["how to bake a cake"], threshold=0.51) == []


def test_pairs_come_in_index_order_and_wordless_texts_are_alike():
    pairs = near_duplicates(["a b", "…"], ["!", "b a a", "b a"])
    assert pairs == [(0, 1, 1.0), (0, 2, 1.0), (1, 0, 1.0)]


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
@settings(deadline=None)
def test_similarity_is_symmetric_and_finds_each_text_in_itself(left, right):
    forth = near_duplicates(left, right, threshold=0.3)
    back = near_duplicates(right, left, threshold=0.3)
    assert forth == sorted((i, j, score) for j, i, score in back)
    assert {(i, i, 1.0) for i in range(len(left))} <= set(near_duplicates(left, left))


# Batches.


def test_batches_are_the_same_with_every_version():
    """Resume depends on it. The values are what NumPy 2.4 and 2.5 gave; step 2 spans two epochs."""
    prompts = make_prompts(harmful=5, benign=3)
    steps = [batch_at(prompts, step, counts={"harmful": 2, "benign": 1}, seed=7) for step in (0, 2)]
    assert ids(steps[0]) == ["harmful-3", "harmful-4", "benign-1"]
    assert ids(steps[1]) == ["harmful-1", "harmful-1", "benign-0"]


def test_order_in_a_batch_is_harmful_benign_lookalike():
    prompts = make_prompts(harmful=3, benign=3, lookalike=3)[::-1]
    batch = batch_at(prompts, 4, counts={"lookalike": 2, "benign": 1, "harmful": 3}, seed=0)
    assert [prompt.kind for prompt in batch] == ["harmful"] * 3 + ["benign"] + ["lookalike"] * 2


sizes = st.integers(1, 12)
per_step = st.integers(0, 15)


@given(
    size=st.fixed_dictionaries(dict.fromkeys(KINDS, sizes)),
    counts=st.fixed_dictionaries(dict.fromkeys(KINDS, per_step)).filter(
        lambda counts: sum(counts.values())
    ),
    seed=st.integers(0, 2**40),
    steps=st.integers(1, 12),
)
@settings(deadline=None)
def test_every_epoch_holds_every_prompt_once(size, counts, seed, steps):
    prompts = make_prompts(**size)
    walked = [batch_at(prompts, step, counts=counts, seed=seed) for step in range(steps)]
    for batch in walked:
        assert collections.Counter(prompt.kind for prompt in batch) == +collections.Counter(counts)
    for kind in KINDS:
        sequence = [prompt for batch in walked for prompt in batch if prompt.kind == kind]
        for start in range(0, len(sequence), size[kind]):
            epoch = sequence[start : start + size[kind]]
            assert len(set(epoch)) == len(epoch)


@given(st.integers(0, 10**6), st.integers(0, 2**40))
@settings(deadline=None)
def test_a_batch_depends_on_step_and_seed_alone(step, seed):
    prompts = make_prompts(harmful=7, lookalike=4)
    counts = {"harmful": 3, "lookalike": 2}
    first = batch_at(prompts, step, counts=counts, seed=seed)
    assert batch_at(list(prompts), step, counts=dict(counts), seed=seed) == first


def test_one_kind_is_walked_the_same_whatever_is_taken_of_the_others():
    prompts = make_prompts(harmful=9, benign=9)
    alone = batch_at(prompts, 5, counts={"harmful": 4}, seed=1)
    assert batch_at(prompts, 5, counts={"harmful": 4, "benign": 2}, seed=1)[:4] == alone


def test_epochs_kinds_and_seeds_are_shuffled_apart():
    prompts = make_prompts(harmful=30, benign=30)

    def order(kind: Kind, *, epoch: int, seed: int) -> list[str]:
        batch = batch_at(prompts, epoch, counts={kind: 30}, seed=seed)
        return [prompt.id.removeprefix(f"{kind}-") for prompt in batch]

    base = order("harmful", epoch=0, seed=0)
    assert sorted(base, key=int) == [str(i) for i in range(30)]
    assert base != sorted(base, key=int)
    assert base != order("harmful", epoch=1, seed=0)
    assert base != order("harmful", epoch=0, seed=1)
    assert base != order("benign", epoch=0, seed=0)


def test_every_prompt_is_equally_likely_to_come_first():
    """Over 2,000 seeds each of 4 prompts leads about 500 times (standard deviation 19)."""
    prompts = make_prompts(harmful=4)
    leads = collections.Counter(
        batch_at(prompts, 0, counts={"harmful": 1}, seed=seed)[0].id for seed in range(2000)
    )
    assert all(400 < leads[prompt.id] < 600 for prompt in prompts)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"harmful": 1, "lookalike": 2}, "lookalike is 2, but the data has no lookalike prompts"),
        ({"evil": 1}, "unknown kind 'evil'"),
        ({"harmful": -1}, "harmful is -1; use 0 or more"),
        ({"harmful": 0}, "a batch of no prompts"),
        ({}, "a batch of no prompts"),
    ],
)
def test_counts_that_cannot_be_met_are_input_errors(counts, message):
    with pytest.raises(InputError, match=message):
        batch_at(make_prompts(harmful=2), 0, counts=counts, seed=0)


def test_an_empty_kind_that_is_not_asked_for_is_no_error():
    batch = batch_at(make_prompts(harmful=2), 0, counts={"harmful": 1, "benign": 0}, seed=0)
    assert len(batch) == 1


@pytest.mark.parametrize("arguments", [{"step": -1, "seed": 0}, {"step": 0, "seed": -1}])
def test_negative_step_or_seed_is_a_programming_error(arguments):
    with pytest.raises(ValueError, match="at least 0"):
        batch_at(make_prompts(harmful=2), counts={"harmful": 1}, **arguments)


@pytest.mark.parametrize(("share", "wrong"), [(0.0, (0, 0)), (0.25, (1, 2)), (1.0, (4, 8))])
def test_mislabelled_prompts_change_sides_and_nothing_else(share, wrong):
    kinds = ["harmful"] * 4 + ["benign"] * 3 + ["lookalike"] * 5
    prompts = [Prompt(str(i), f"text {i}", kind, "general") for i, kind in enumerate(kinds)]
    noisy = mislabel(prompts, share, seed=3)
    assert [p.text for p in noisy] == [p.text for p in prompts]
    flipped = [(a.kind, b.kind) for a, b in zip(prompts, noisy, strict=True) if a != b]
    assert {b for a, b in flipped if a == "harmful"} <= {"benign"}
    assert {b for a, b in flipped if a != "harmful"} <= {"harmful"}
    assert (sum(a == "harmful" for a, _ in flipped), sum(a != "harmful" for a, _ in flipped)) == (
        wrong
    )
    assert mislabel(prompts, share, seed=3) == noisy
    if share == 0.25:
        assert any(mislabel(prompts, share, seed=seed) != noisy for seed in range(4))
