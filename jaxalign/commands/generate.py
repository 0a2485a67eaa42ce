"""`jaxalign generate`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import tyro

from jaxalign.commands.asking import Asking, tool_of
from jaxalign.commands.common import DtypeName, load_model, note
from jaxalign.errors import InputError


@dataclass(frozen=True)
class Generate:
    """Print a model's reply to one prompt.

    jaxalign generate --model smollm2 --prompt "How do I kill a process?"

    jaxalign generate --model runs/demo/model --prompt "Tell me a joke." --temperature 0.8 --seed 3
    """

    model: str
    """smollm2, a Hugging Face folder, a .gguf file, or a hub id."""
    prompt: str
    """The request."""
    temperature: float = 0.0
    """0 always takes the most probable token; 1 draws from the model's own distribution."""
    max_new_tokens: int = 128
    """Cut the reply off after so many tokens."""
    seed: int = 0
    """Of the draw; the same seed gives the same reply."""
    dtype: DtypeName = "auto"
    """Of the computation; auto takes the faster one."""
    asking: Annotated[Asking, tyro.conf.arg(name="")] = Asking()

    def run(self) -> None:
        """Prints the reply to stdout, remarks to stderr."""
        template, book = self.asking.messages()
        if not self.prompt.strip():
            raise InputError("--prompt is empty; write a request")
        if any("\ud800" <= character <= "\udfff" for character in self.prompt):
            raise InputError("--prompt is not valid Unicode; correct it")
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens is {self.max_new_tokens}; use 1 or more")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise InputError(f"--temperature is {self.temperature}; use 0 or more")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"--seed is {self.seed}; use 0 to {2**31 - 1}")
        model, params, tokenizer = load_model(self.model, self.dtype)
        import jax

        from jaxalign.data.templates import encode_chat
        from jaxalign.evaluation.run_folder import printable
        from jaxalign.evaluation.suites import complete, decode
        from jaxalign.sampling import Greedy, Temperature

        rollout = complete(
            model,
            params,
            tokenizer,
            [self.prompt],
            jax.random.key(self.seed),
            template=template,
            tool=tool_of(book, tokenizer),
            max_prompt_tokens=len(encode_chat(tokenizer, template(self.prompt))[1]),
            max_new_tokens=self.max_new_tokens,
            method=Temperature(self.temperature) if self.temperature else Greedy(),
        )
        rollout = jax.device_get(rollout)
        print(printable(decode(tokenizer, rollout.tokens[0], rollout.present[0])))
        if not rollout.finished[0]:
            note(f"cut off after {self.max_new_tokens} tokens; see --max-new-tokens")
