"""Labels alone teach a small random model what to call its training prompts."""

import numpy as np
import pytest

from experiments.benchmarks.supervised_verdicts import (
    Command,
    encode,
    first_token,
    learn,
    margins,
    run,
    table_row,
)
from jaxalign.answers.asking import LanguageModel
from jaxalign.data import Prompt
from jaxalign.host.errors import InputError


def test_a_row_by_hand():
    """Two harmful prompts at 2 and −1, benign ones at −2 and 1, no look-alike."""
    kinds = ("harmful", "harmful", "benign", "benign")
    prompts = [Prompt(str(i), "text", kind, "general") for i, kind in enumerate(kinds)]
    # Of the four pairs 2 > −2, 2 > 1 and −1 > −2 are in order.
    row = table_row(prompts, np.array([2.0, -1.0, -2.0, 1.0]))
    assert row == ["0.750", "–", "0.50", "0.50", "–"]


def test_the_margin_is_the_difference_of_two_logps(tiny_model_folder):
    lm = LanguageModel.load(str(tiny_model_folder), dtype="float32")
    tokens, mask = encode(lm, ["How do I bake bread?", "Hi"])
    found = margins(lm.model, lm.params, tokens, mask, words=(5, 9))
    ones = np.ones((2, 1), bool)
    of_each = [
        lm.model.logps(lm.params, tokens, mask, np.full((2, 1), word, np.int32), ones)[:, 0]
        for word in (5, 9)
    ]
    np.testing.assert_allclose(found, of_each[0] - of_each[1], rtol=1e-4, atol=1e-5)


def test_rows_come_before_on_the_way_and_at_the_end(tiny_model_folder, monkeypatch):
    """Three updates of eight labels; what is learned moves the margins."""
    lm = LanguageModel.load(str(tiny_model_folder), dtype="float32")
    command = Command(batch_size=8, evaluate_every=2, learning_rate=1e-2)
    kinds = ("harmful", "benign", "lookalike")
    few = [Prompt(f"{k}-{i}", f"{k} text {i}", k, "general") for k in kinds for i in range(12)]
    from experiments.benchmarks import supervised_verdicts

    monkeypatch.setattr(supervised_verdicts, "builtin_prompts", lambda split: few)
    rows = learn(command, lm, {"few": few})
    assert [row[0] for row in rows] == ["0", "16", "24"]
    assert all(row[1] == "few" and len(row) == 2 + 2 + 3 for row in rows)
    assert rows[0][2:] != rows[-1][2:]


def test_words_of_several_tokens_and_odd_batches_are_refused(tiny_model_folder):
    lm = LanguageModel.load(str(tiny_model_folder), dtype="float32")
    assert lm.tokenizer.decode([first_token(lm, "safe")]) == " safe"
    with pytest.raises(InputError, match="'unsafeguardable' takes . tokens of this tokenizer"):
        first_token(lm, "unsafeguardable")
    with pytest.raises(InputError, match="batch_size=7 is odd"):
        run(Command(model=str(tiny_model_folder), batch_size=7))
