"""A small byte-level tokenizer, trained on the spot, for tests that need no real vocabulary."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "<safety_reasoning>It asks for harm.</safety_reasoning>\n<answer>I'm sorry, I cannot</answer>",
    "<safety_reasoning>Harmless.</safety_reasoning> <answer>Here is how: 1. 2. 3.</answer>",
    "I’m not able to help, I can’t. Sorry, I can't comply. As an AI, I will not.",
    "naïve façade, 漢字, Ελληνικά, 🙂🙂 and more of it",
]


@pytest.fixture(scope="session")
def small_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with 400 tokens; ids 0 and 1 are special, and one added token is not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer.add_tokens([AddedToken("<answer>I am not ready"), AddedToken("née")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
