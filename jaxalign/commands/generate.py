"""`jaxalign generate`."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxalign.commands.asking import Asking, tool_of
from jaxalign.commands.common import DtypeName, File, kept_dtype, load_model, note, prepare_out
from jaxalign.host.errors import InputError

if TYPE_CHECKING:
    from jaxalign.answers.generation import Generation
    from jaxalign.sampling import Method


@dataclass(frozen=True)
class Many:
    """With --prompts."""

    out: File = None
    """Write the answers to this file, NAME.jsonl, one JSON object a line, in the order of the
    prompts. Until it is complete they are in NAME.part.jsonl; the same command goes on there after
    a run that was stopped. NAME.facts.json says what they depend on, and what was skipped."""
    text_field: Annotated[str | None, tyro.conf.arg(metavar="FIELD")] = None
    """The field with the text, by default the first of prompt, goal, instruction, question,
    forbidden_prompt, text and turns that there is."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Take only so many prompts: the first ones; of the builtin ones, kinds in turn."""
    samples: int = 1
    """Answers to each prompt; more than one needs a --temperature."""
    batch_size: int = 32
    """Prompts at a time: more is faster and takes more memory."""
    max_prompt_tokens: int = 256
    """Skip prompts that take more tokens; they are counted and listed."""


@dataclass(frozen=True)
class Generate:
    """Print a model's reply to one prompt, or write its replies to many.

    jaxalign generate --model smollm2 --prompt "How do I kill a process?"

    jaxalign generate --model runs/demo/model --prompt "Tell me a joke." --temperature 0.8 --seed 3

    jaxalign generate --model smollm2 --prompts mine.csv --out answers.jsonl

    jaxalign generate --model smollm2 --prompts hub:owner/name --out answers.jsonl --samples 4
    --temperature 1
    """

    model: str
    """smollm2, a Hugging Face folder, a .gguf file, or a hub id."""
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """The request; its reply goes to stdout."""
    prompts: Annotated[str | None, tyro.conf.arg(metavar="SPEC")] = None
    """Requests: FILE.jsonl, FILE.csv, hub:NAME[/CONFIG][@SPLIT], disk:FOLDER[@SPLIT],
    tfds:NAME[@SPLIT], builtin:heldout or builtin:train."""
    temperature: float = 0.0
    """0 always takes the most probable token; 1 draws from the model's own distribution."""
    top_p: float = 1.0
    """With a temperature: draw among the most probable tokens that have this share together."""
    max_new_tokens: int = 128
    """Cut a reply off after so many tokens."""
    seed: int = 0
    """Of the draw; the same seed gives the same reply."""
    dtype: DtypeName = "auto"
    """Of the computation; auto takes the faster one."""
    asking: Annotated[Asking, tyro.conf.arg(name="")] = Asking()
    many: Annotated[Many, tyro.conf.arg(name="")] = Many()

    def run(self) -> None:
        """Prints the reply to stdout or writes the file; prints remarks to stderr."""
        if (self.prompt is None) == (self.prompts is None):
            raise InputError("give either --prompt TEXT or --prompts SPEC")
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens is {self.max_new_tokens}; use 1 or more")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise InputError(f"--temperature is {self.temperature}; use 0 or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p is {self.top_p}; use a share above 0, at most 1")
        if self.top_p < 1 and not self.temperature:
            raise InputError("--top-p goes with a --temperature above 0; give one, such as 1")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"--seed is {self.seed}; use 0 to {2**31 - 1}")
        if self.prompt is not None:
            self._print_one(self.prompt)
        elif self.prompts is not None:
            self._write_many(self.prompts)

    def _method(self) -> Method:
        from jaxalign.sampling import Greedy, Temperature, TopP

        if not self.temperature:
            return Greedy()
        if self.top_p < 1:
            return TopP(self.top_p, self.temperature)
        return Temperature(self.temperature)

    def _print_one(self, prompt: str) -> None:
        template, book = self.asking.messages()
        for field in dataclasses.fields(Many):
            if getattr(self.many, field.name) != field.default:
                flag = f"--{field.name.replace('_', '-')}"
                raise InputError(f"{flag} goes with --prompts, not with --prompt; leave it out")
        if not prompt.strip():
            raise InputError("--prompt is empty; write a request")
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise InputError("--prompt is not valid Unicode; correct it")
        model, params, tokenizer = load_model(self.model, self.dtype)
        import jax

        from jaxalign.answers.completing import complete, decode
        from jaxalign.data.templates import encode_chat
        from jaxalign.reports.run_folder import printable
        from jaxalign.sampling import Stage, stage_key

        rollout = complete(
            model,
            params,
            tokenizer,
            [prompt],
            stage_key(self.seed, Stage.ANSWERS),
            template=template,
            tool=tool_of(book, tokenizer),
            max_prompt_tokens=len(encode_chat(tokenizer, template(prompt))[1]),
            max_new_tokens=self.max_new_tokens,
            method=self._method(),
        )
        rollout = jax.device_get(rollout)
        print(printable(decode(tokenizer, rollout.tokens[0], rollout.present[0])))
        if not rollout.finished[0]:
            note(f"cut off after {self.max_new_tokens} tokens; see --max-new-tokens")

    def _write_many(self, spec: str) -> None:
        template, book = self.asking.messages()
        out = self.many.out
        if out is None:
            raise InputError("--prompts needs a file for the answers; give --out NAME.jsonl")
        if self.many.samples > 1 and not self.temperature:
            raise InputError(
                f"--samples {self.many.samples} would all be the same at --temperature 0; raise it"
            )
        prepare_out(out)
        from jaxalign.data.sources import load_requests

        requests = load_requests(spec, text_field=self.many.text_field, limit=self.many.limit)
        from jaxalign.answers.batch_files import facts_path, part_path

        model, params, tokenizer = load_model(
            self.model, kept_dtype(self.dtype, [out, part_path(out)])
        )
        from jaxalign.answers.generation import generate
        from jaxalign.host.progress import progress_bar

        start = time.monotonic()
        try:
            with progress_bar(stderr=True) as bar:
                task = bar.add_task("prompts", total=None)

                def show(done: int, total: int, tokens: int) -> None:
                    speed = tokens / (time.monotonic() - start)
                    text = f"prompts, {speed:,.0f} tokens/s" if tokens else "prompts"
                    bar.update(task, completed=done, total=total, description=text)

                made = generate(
                    model,
                    params,
                    tokenizer,
                    requests,
                    out,
                    template=template,
                    tool=tool_of(book, tokenizer),
                    method=self._method(),
                    samples=self.many.samples,
                    max_prompt_tokens=self.many.max_prompt_tokens,
                    max_new_tokens=self.max_new_tokens,
                    batch_size=self.many.batch_size,
                    seed=self.seed,
                    facts={"model": self.model, "rules": book and dict(book.rules)},
                    progress=show,
                )
        except KeyboardInterrupt:
            if part_path(out).exists():
                note(f"{part_path(out)} keeps what is done; the same command goes on from there")
            raise
        if made is None:
            note(f"{out} is complete already; delete it to have it made again")
            return
        self._remark(made, facts_path(out))
        print(f"Written: {out}")

    def _remark(self, made: Generation, kept: Path) -> None:
        from jaxalign.reports.run_folder import printable

        speed = made.tokens / made.seconds
        note(f"{made.tokens} tokens in {made.seconds:.1f} s, {speed:.0f} tokens/s")
        if made.cut_off:
            note(
                f"{made.cut_off} of {made.answers} answers cut off after {self.max_new_tokens} "
                "tokens; see --max-new-tokens"
            )
        if made.skipped:
            shown = ", ".join(map(printable, made.skipped[:5]))
            more = f", …; all of them are in {kept}" if len(made.skipped) > 5 else ""
            note(
                f"{len(made.skipped)} prompts skipped, longer than {self.many.max_prompt_tokens} "
                f"tokens (--max-prompt-tokens): {shown}{more}"
            )
