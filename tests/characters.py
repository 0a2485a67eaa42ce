"""A tokenizer with a token for each ASCII character, and tiny models of that vocabulary.

Whatever is sampled encodes back to the same tokens, so scores of texts and of tokens can be held
against each other.
"""

import dataclasses

from tiny_model import SMALL

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LETTERS = [*(chr(code) for code in range(33, 127)), "Ġ", "Ċ"]  # GPT-2's space and line break
POLICY = dataclasses.replace(SMALL, vocab_size=len(LETTERS) + 2, eos_token_id=len(LETTERS) + 1)
SCORER = dataclasses.replace(POLICY, num_labels=1)


def character_tokenizer(letters=LETTERS, template=CHATML):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={x: i for i, x in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(x, special=True) for x in ("<|im_start|>", "<|im_end|>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", chat_template=template
    )
