"""`jaxalign generate`."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxalign.commands.common import (
    ChatTemplate,
    DtypeName,
    File,
    Folder,
    StopTexts,
    check_draws,
    kept_dtype,
    load_model,
    note,
    prepare_out,
    read_stops,
    speed_bar,
)
from jaxalign.commands.wording import Wording, tool_of
from jaxalign.host.errors import InputError

if TYPE_CHECKING:
    from jaxalign.answers.asking import Asking
    from jaxalign.answers.generation import Generation
    from jaxalign.data.templates import Template
    from jaxalign.sampling import Method, Tool


@dataclass(frozen=True)
class Many:
    """With --prompts."""

    out: File = None
    """Write the answers to this file, NAME.jsonl, one JSON object a line, in the order of the
    prompts. Until it is complete they are in NAME.part.jsonl; the same command goes on there after
    a run that was stopped. NAME.facts.json says what they depend on, and what was skipped."""
    text_field: Annotated[str | None, tyro.conf.arg(metavar="FIELD")] = None
    """The field with the text, by default the first of prompt, goal, instruction, question,
    forbidden_prompt, text, turns and messages that there is. Of a list of messages the last user
    turn is the request, and those before it are the conversation."""
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
    adapter: Folder = None
    """A low-rank adapter to run the model with, such as RUN/adapter of a run with --lora.rank, or
    PEFT's."""
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """The request; its reply goes to stdout."""
    prompts: Annotated[str | None, tyro.conf.arg(metavar="SPEC")] = None
    """Requests: FILE.jsonl, .json, .csv, .tsv (each .gz, too) or .parquet,
    hub:NAME[/CONFIG][@SPLIT], disk:FOLDER[@SPLIT], tfds:NAME[@SPLIT], builtin:heldout or
    builtin:train."""
    temperature: float = 0.0
    """0 always takes the most probable token; 1 draws from the model's own distribution."""
    top_p: float = 1.0
    """With a temperature: draw among the most probable tokens that have this share together."""
    max_new_tokens: int = 128
    """Cut a reply off after so many tokens."""
    stop: StopTexts = ()
    """Texts and names of tokens that end a reply, beside the model's own ends; \\n is a line break.
    A reply stops before the text."""
    seed: int = 0
    """Of the draw; the same seed gives the same reply."""
    dtype: DtypeName = "auto"
    """Of the computation; auto takes the faster one."""
    wording: Annotated[Wording, tyro.conf.arg(name="")] = Wording()
    chat: Annotated[ChatTemplate, tyro.conf.arg(name="")] = ChatTemplate()
    many: Annotated[Many, tyro.conf.arg(name="")] = Many()

    def run(self) -> None:
        """Prints the reply to stdout or writes the file; prints remarks to stderr."""
        if (self.prompt is None) == (self.prompts is None):
            raise InputError("give either --prompt TEXT or --prompts SPEC")
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens is {self.max_new_tokens}; use 1 or more")
        check_draws(
            temperature=self.temperature,
            seed=self.seed,
            samples=1 if self.prompts is None else self.many.samples,
        )
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p is {self.top_p}; use a share above 0, at most 1")
        if self.top_p < 1 and not self.temperature:
            raise InputError("--top-p goes with a --temperature above 0; give one, such as 1")
        if self.prompt is not None:
            self._print_one(self.prompt)
        elif self.prompts is not None:
            self._write_many(self.prompts)

    def _asking(self, template: Template, tool: Tool | None) -> Asking:
        from jaxalign.answers.asking import Asking
        from jaxalign.sampling import Greedy, Temperature, TopP

        if not self.temperature:
            method: Method = Greedy()
        elif self.top_p < 1:
            method = TopP(self.top_p, self.temperature)
        else:
            method = Temperature(self.temperature)
        return Asking(
            template,
            tool,
            method,
            samples=self.many.samples,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.many.batch_size,
            seed=self.seed,
            stop=read_stops(self.stop),
        )

    def _print_one(self, prompt: str) -> None:
        template, book = self.wording.messages()
        for field in dataclasses.fields(Many):
            if getattr(self.many, field.name) != field.default:
                flag = f"--{field.name.replace('_', '-')}"
                raise InputError(f"{flag} goes with --prompts, not with --prompt; leave it out")
        if not prompt.strip():
            raise InputError("--prompt is empty; write a request")
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise InputError("--prompt is not valid Unicode; correct it")
        lm = load_model(self.model, self.dtype, self.chat, self.adapter)
        from jaxalign.answers.asking import answers
        from jaxalign.reports.printable import printable

        asking = self._asking(template, tool_of(book, lm.tokenizer))
        (answer,) = answers(lm, [prompt], asking)
        print(printable(lm.text(answer.written, answer.ending)))
        if not answer.finished:
            note(f"cut off after {self.max_new_tokens} tokens; see --max-new-tokens")

    def _write_many(self, spec: str) -> None:
        template, book = self.wording.messages()
        out = self.many.out
        if out is None:
            raise InputError("--prompts needs a file for the answers; give --out NAME.jsonl")
        prepare_out(out)
        from jaxalign.data.sources import load_requests

        requests = load_requests(spec, text_field=self.many.text_field, limit=self.many.limit)
        from jaxalign.answers.batch_files import facts_path, part_path

        kept = [out, part_path(out)]
        dtype, chat = kept_dtype(self.dtype, kept), self.chat.begun(kept)
        lm = load_model(self.model, dtype, chat, self.adapter)
        from jaxalign.answers.generation import generate

        asking = self._asking(template, tool_of(book, lm.tokenizer))
        limited = dataclasses.replace(asking, max_prompt_tokens=self.many.max_prompt_tokens)
        facts = {"model": self.model, "rules": book and dict(book.rules)}
        try:
            with speed_bar() as progress:
                show = functools.partial(progress, "prompts")
                made = generate(lm, requests, out, limited, facts=facts, progress=show)
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
        from jaxalign.reports.printable import printable

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
