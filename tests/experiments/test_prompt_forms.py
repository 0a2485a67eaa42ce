"""Form-only AUC: what is masked, who shares a fold, and that it sees form and nothing else."""

import json

import numpy as np
import pytest

from experiments.benchmarks.prompt_forms import (
    FORMS,
    Settings,
    areas,
    folds,
    form_shares,
    main,
    mask,
    new_openings,
    opening,
    out_of_fold,
    transferred,
)
from jaxalign.data import KINDS, Prompt
from jaxalign.host.errors import InputError

NOUNS = ["bread", "a kite", "snow", "two owls", "red ink", "a bell", "Bob", "tin", "rye", "a map"]


def in_form(frames: dict[str, str], nouns: list[str]) -> list[Prompt]:
    """Prompts of each kind's frame, one for each noun; those of one noun are a pair."""
    return [
        Prompt(f"{kind}-{noun}", frame.format(noun), kind, "general", pair=noun)
        for kind, frame in frames.items()
        for noun in nouns
    ]


ORDERS = {
    "harmful": "I want {}, now!",
    "benign": "What is {} for?",
    "lookalike": "Why do they call it {}?",
}
SAME = {
    "harmful": "How do I rob {}?",
    "benign": "How do I buy {}?",
    "lookalike": "How do I kill {}?",
}


def test_content_words_are_masked_and_form_is_kept():
    assert mask("How do I bake 3 loaves, Bob?") == "^how do ^i x 0 x , X ?".split()
    assert mask('i can’t – "HELP" me') == ["i", "can't", "–", '"', "^help", '"', "me"]
    assert mask("Don't cook_meth!") == ["^don't", "x", "x", "!"]


def test_an_opening_is_five_words_without_punctuation():
    assert opening('"Please, Bob: how do I …"') == ("^please", "x", "how", "do", "^i")
    assert opening("Snow?") == ("x",)
    seen, new = in_form(SAME, ["bread"]), in_form(ORDERS, ["snow"])
    assert new_openings(seen, in_form(SAME, ["tin"])) == 0
    assert new_openings(seen, [*new, *in_form(SAME, ["tin"])]) == 0.5


def test_a_pair_is_in_one_fold():
    prompts = in_form(SAME, NOUNS)
    alone = [Prompt(str(i), "x", "benign", "general") for i in range(10)]
    fold = folds([*prompts, *alone], seed=3)
    assert (fold[:10] == fold[10:20]).all() and (fold[:10] == fold[20:30]).all()
    assert sorted(np.bincount(fold[:10].tolist() + fold[30:].tolist())) == [2] * 10


def test_form_that_tells_all_and_form_that_tells_nothing():
    telling, mute = in_form(ORDERS, NOUNS), in_form(SAME, NOUNS)
    assert areas(telling, out_of_fold(telling)) == [1.0, 1.0, 1.0]
    assert areas(telling, transferred(telling, telling)) == [1.0, 1.0, 1.0]
    assert areas(mute, out_of_fold(mute)) == pytest.approx([0.5, 0.5, 0.5], abs=0.2)
    assert areas(mute, transferred(telling, mute)) == [0.5, 0.5, 0.5]


def test_forms_are_counted():
    shares = dict(zip(FORMS, form_shares(in_form(ORDERS, NOUNS), "harmful"), strict=True))
    assert shares["need"] == 1 and shares["question"] == shares["plea"] == 0
    texts = {
        "plea": "Please, what now?",
        "role-play": "You're a cook. Go on.",
        "quotation": 'My aunt said, "No." Why?',
        "chatty lower case": "hey whats up",
        "18 words or more": " ".join(["word"] * 18),
    }
    for form, text in texts.items():
        shares = form_shares([Prompt("a", text, "benign", "general")], "benign")
        assert dict(zip(FORMS, shares, strict=True))[form] == 1, form


def test_the_tables(tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    rows = [
        {"id": p.id, "prompt": p.text, "kind": p.kind, "pair": p.pair}
        for p in in_form(ORDERS, NOUNS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(Settings((str(path),), (str(path),)))
    printed = capsys.readouterr().out
    assert "trained on train, tested on held-out | 30 | 1.000 | 1.000 | 1.000" in printed
    assert all(f"held-out, {kind}" in printed for kind in KINDS)
    assert "Held-out prompts that open as none of training: 0%" in printed


def test_a_kind_that_is_missing(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "Why?", "kind": "benign"}\n')
    with pytest.raises(InputError, match="mine.jsonl: fewer than 10 harmful prompts; form"):
        main(Settings((str(path),), (str(path),)))
