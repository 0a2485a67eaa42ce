"""A tokenizer that takes the place of a model's where only sizes matter."""

import json
from typing import Any

from jaxalign.data.sources import load_prompts

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def stand_in_tokenizer(vocab_size: int) -> Any:
    """A byte-level tokenizer with a chat template, trained on our prompts and filled up to V words.

    Its prompts are about as long as those of a real one; the fillers, of six bytes like an average
    word, never occur. So a plan's shapes are right without the hub.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|im_start|>", "<|im_end|>"]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, 8192) - len(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [prompt.text for prompt in load_prompts("builtin:train")]
    learner.train_from_iterator(texts, trainer)
    learner.decoder = decoders.ByteLevel()
    fields = json.loads(learner.to_str())
    words = fields["model"]["vocab"]
    # In the vocabulary and not added to it: transformers goes through what is added at each call.
    words |= {f"{i:06x}": i for i in range(len(words), vocab_size - len(special))}
    learner = Tokenizer.from_str(json.dumps(fields))
    learner.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=learner, eos_token="<|im_end|>", chat_template=_TEMPLATE
    )
