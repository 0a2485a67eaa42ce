"""Words that end a row: where they count, and which tokens spell them; by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chained_model import chained_model
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from jaxalign.answers import Asking, LanguageModel, answers
from jaxalign.data.templates import pad
from jaxalign.host.errors import InputError
from jaxalign.sampling import Endings, consultation


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return chained_model(
        ["g", "[a]"],
        ["\n", "b", "c", "]", "b"],  # behind a tool's answer, which ends in a line break
        ["h", "b]", "bb]"],
        ["k", "s", "t", "t"],
    )


def test_a_stop_is_found_in_one_stretch_of_the_models_own_tokens(lm: LanguageModel) -> None:
    """A tool answers "[a]"; the model goes on with "b", and "]b" stands only behind that."""
    tool = consultation({"a": "No."}, lm.tokenizer, call_tags=("[", "]"), answer_tags=("(", ")"))
    asking = Asking(tool=tool, stop=("]b", "never\n"), max_new_tokens=16)
    asked = answers(lm, ["g", "h", "k"], asking)
    texts = [lm.text(x.written, x.ending) for x in asked]
    assert texts == ["[a]\n(No.)\nbc", "b", "s" + 15 * "t"]
    assert [lm.text(x.tokens, x.ending) for x in asked] == ["[a]bc", "b", texts[2]]
    assert [(x.ending, x.finished) for x in asked] == [(2, True), (4, True), (0, False)]
    endings = lm._endings(asking.stop)
    assert endings is lm._endings(asking.stop), "built once"

    # What training reads: a token that begins before the words is text, one within them is not.
    tokens, present = pad([x.written for x in asked], 16)
    mask = present.copy()
    mask[0, 1:8] = False  # "\n(No.)\n"
    ending = np.asarray(jax.jit(Endings.spelled)(endings, tokens, mask, present))
    spelled = lambda where: [lm.text(tokens[row][where[row]]) for row in range(3)]  # noqa: E731
    assert spelled(mask) == ["[a]bc]b", "b]bb]", texts[2]]
    assert spelled(present & ~ending) == [texts[0], "b]", texts[2]]
    assert spelled(ending) == ["]b", "bb]", ""]


def test_a_first_space_that_decoding_drops_begins_no_stop() -> None:
    vocab = {"<unk>": 0, "▁": 1, "▁hi": 2, "hi": 3}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    steps = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    endings = Endings.build([" hi"], PreTrainedTokenizerFast(tokenizer_object=backend))
    assert endings is not None
    rows = jnp.array([[2, 2], [1, 2], [2, 3], [3, 2]])
    texts = ["hi hi", " hi", "hihi", "hi hi"]
    assert backend.decode_batch(rows.tolist()) == texts
    ended = [" hi" in text for text in texts]

    @jax.jit
    def found_and_spelled(endings: Endings) -> tuple[jax.Array, jax.Array]:
        step = lambda states, column: endings.advance(states, column, column >= 0)  # noqa: E731
        _, found = jax.lax.scan(step, endings.reader.start(4), rows.T)
        return found, endings.spelled(rows, rows >= 0, rows >= 0)

    found, spelled = found_and_spelled(endings)
    assert found.tolist() == [[False] * 4, ended]
    assert spelled.tolist() == [[False, end] for end in ended]


def test_what_cannot_end_an_answer_is_named(lm: LanguageModel) -> None:
    with pytest.raises(InputError, match=r"can't end in the words '###': needs a fast tokenizer"):
        Endings.build(["###"], object())
    with pytest.raises(InputError, match=r"can't end in the words '.*': 'utf-8' codec can't"):
        Endings.build(["\udcff"], lm.tokenizer)
