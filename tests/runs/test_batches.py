"""The batches of a run: one prefix for all steps, conversations in each prompt's own part."""

import pytest

from jaxalign.data.prompts import KINDS, Prompt, Turn
from jaxalign.data.templates import bare_messages, encode_requests
from jaxalign.host.errors import InputError
from jaxalign.runs.batches import Batches

EARLIER = (
    Turn("system", "Be brief."),
    Turn("user", "Who?"),
    Turn("assistant", "Ann, who lived in the house by the river."),
)


def test_a_batch_has_the_conversations_and_the_prefix_of_all_batches(smollm2_tokenizer):
    prompts = [Prompt(kind, f"What is {kind}?", kind, "other") for kind in KINDS]
    prompts.append(Prompt("chat", "When?", "benign", "other", conversation=EARLIER))
    counts = {"benign": 1}
    batches = Batches(
        prompts, smollm2_tokenizer, bare_messages, counts=counts, max_prompt_tokens=64, seed=0
    )
    batches.check(max_positions=256, max_new_tokens=8)
    prefix, rows = encode_requests(smollm2_tokenizer, bare_messages, [x.asked for x in prompts])
    asked = set()
    for step in range(2):  # an epoch of the benign ones, one of which has no conversation
        (prompt,) = batches.prompts_at(step)
        batch = batches(step)
        assert batch.prefix.tolist() == prefix.tolist()
        tokens = batch.prompts.tokens[batch.prompts.mask].tolist()
        assert tokens == rows[prompts.index(prompt)]
        asked.add(smollm2_tokenizer.decode([*prefix, *tokens]).count("<|im_start|>"))
    assert asked == {3, 5}  # without a system turn of the data the chat template writes its own

    batches = Batches(
        prompts, smollm2_tokenizer, bare_messages, counts=counts, max_prompt_tokens=36, seed=0
    )
    with pytest.raises(InputError, match=r"prompt chat takes \d+ tokens, the limit is 36"):
        batches.check(max_positions=256, max_new_tokens=8)
