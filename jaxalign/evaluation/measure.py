"""Measures a model on suites, with and without attacks: answers in files, verdicts, rates."""

import dataclasses
import datetime
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.answers.asking import Asking, LanguageModel
from jaxalign.answers.generation import generate
from jaxalign.data.prompts import KINDS, Prompt
from jaxalign.data.tables import read_json_lines
from jaxalign.data.templates import Template, Tokenizer
from jaxalign.evaluation.attacks import Attack, make_attack
from jaxalign.evaluation.judges import Judge, make_judge
from jaxalign.evaluation.language import LIKELIER, SHARES, describe_language, warnings_of
from jaxalign.evaluation.own_request import likelier_for_own
from jaxalign.evaluation.probes import Row, key_words, own_text, reasoning_cost
from jaxalign.evaluation.rates import (
    Asked,
    answers_by_prompt,
    apply_attack,
    describe_answers,
    judge_answers,
    rates,
    safety,
)
from jaxalign.host.errors import InputError
from jaxalign.host.hardware import hardware
from jaxalign.host.json_files import fingerprint, read_json, write_json
from jaxalign.host.processes import is_first, wait_for_all
from jaxalign.rewards import CONSULTING_FORMAT_PATTERN, STRICT_FORMAT_PATTERN, split, verdict_of
from jaxalign.sampling import Greedy
from jaxalign.text.chat_template import template_date

Progress = Callable[[str, int, int, int], None]
"""`(name, done, total, tokens)`: of a file of answers, requests and tokens that were generated."""

ANSWERS, VERDICTS, RESULTS = "answers", "verdicts", "results.json"


def evaluate(
    lm: LanguageModel,
    suites: Mapping[str, Sequence[Prompt]],
    asking: Asking,
    folder: Path,
    *,
    model: str,
    settings: Mapping[str, Any],
    attacks: Sequence[Attack] | None = None,
    judges: Sequence[Judge] | None = None,
    rules: Mapping[str, str] | None = None,
    reference: Callable[[], LanguageModel] | None = None,
    progress: Progress = lambda name, done, total, tokens: None,
) -> dict[str, Any]:
    """Asks a model all prompts, judges the answers, and keeps everything in a folder.

    The folder is what `jaxalign eval --out` writes, but for the report: `answers/`, `verdicts/` and
    `results.json`. A call that was killed goes on from there; where all is answered it only judges.
    Answers may consult `rules`; `settings` is what `results.json` should say beside the fields of
    `asking`: `judge`, or the name of the template where its function has another. By default
    requests are sent as they are, and AlphaAlign's phrases judge. A `reference`, such as the model
    that training began with, is loaded once all is answered, to tell whether answers go with their
    requests (`likelier_for_own`).

    Returns:
      the content of `results.json`. Of several processes the first one's alone: it writes.

    Raises:
      InputError: as `answer_all`; or there is nothing to ask, or to judge.
    """
    begun = time.monotonic()
    attacks = [make_attack("none")] if attacks is None else attacks
    judges = [make_judge("phrases")] if judges is None else judges
    prompts = [prompt for those in suites.values() for prompt in those]
    if not any(x.measures == "refusal" or prompt.is_harmful for x in judges for prompt in prompts):
        raise InputError(
            "nothing to judge: give prompts and a judge; judges of harm read answers to harmful "
            "prompts alone"
        )
    lm = dataclasses.replace(lm, weights=lm.digest)  # a pass over the parameters, once
    sent = answer_all(
        lm, suites, attacks, asking, folder=folder, facts={"rules": rules}, progress=progress
    )
    results = {}
    if is_first():
        answered = []
        for asked in sent:
            lines = read_json_lines(folder / ANSWERS / f"{asked.name}.jsonl")
            rows = [row for _, row in lines]
            answered.append((asked, answers_by_prompt(asked, rows, asking.samples)))
        judged = judge_all(answered, judges, folder, consulting=asking.tool is not None)
        if reference is not None:
            judged["answers"] = _with_likelier(judged["answers"], answered, reference())
        method, day = asking.method, template_date(lm.tokenizer)
        fields = ("samples", "seed", "max_prompt_tokens", "max_new_tokens")
        results = {
            "model": model,
            "weights": lm.digest,
            "date": datetime.date.today().isoformat(),
            "hardware": hardware(),
            "seconds": round(time.monotonic() - begun, 1),
            "settings": {
                "template": template_name(asking.template),
                **settings,
                **{name: getattr(asking, name) for name in fields},
                "stop": list(asking.stop),
                "chat_template": getattr(lm.tokenizer, "template_name", None),
                "temperature": 0.0 if isinstance(method, Greedy) else method.temperature,
                "dtype": lm.dtype,
                "wording": wording_digest(asking.template, rules),
                **({"template_date": day} if day else {}),
            },
            **judged,
            **probe_all(answered, lm.tokenizer),
        }
        write_json(folder / RESULTS, results)
    wait_for_all()
    return results


def _with_likelier(
    facts: Sequence[dict[str, Any]],
    answered: Sequence[tuple[Asked, Sequence[Sequence[Row]]]],
    reference: LanguageModel,
) -> list[dict[str, Any]]:
    """The facts, with what the reference says of answers to prompts as they are."""
    return [
        fact | {LIKELIER: likelier_for_own(reference, asked.prompts, answers)}
        if asked.attack == "none"
        else fact
        for fact, (asked, answers) in zip(facts, answered, strict=True)
    ]


def summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """The rates of the first suite in a few lines, by the first judge of refusals, without attack.

    Returns:
      - `harmful_refused`, `benign_refused`, `lookalike_refused`: share of the kind that is refused;
        absent where there is no such prompt.
      - `harmful_consulted`, …: share of the kind whose answers called the tool; absent without one.
      - `well_formed`, `finished`: shares of all.
      - `subject_named`, …: the shares of `jaxalign.evaluation.language.describe_language`, None of
        nothing; `own_answer_likelier`, of `likelier_for_own`. Absent where the evaluation has none.
      - `distinct_reasonings`, `distinct_answers`: how many different texts there are;
        `masked_reasonings`: how many reasonings without what names the subject.
      - `prompts`, `skipped`: how many were answered, and how many were too long to ask.
      - `intervals`: [low, high] of each of the shares, 95 %; `n`: prompts of each kind.
      - `warnings`: the lines of `jaxalign.evaluation.language.warnings_of`.
    """
    facts, rates = results["answers"][0], results["rates"]
    plain = [x for x in rates if x["measure"] == "refused" and x["suite"] == facts["suite"]]
    refused = {x["kind"]: x for x in plain if x["judge"] == plain[0]["judge"]}
    shares = {f"{kind}_refused": share for kind, share in refused.items()}
    shares |= {f"{kind}_consulted": share for kind, share in facts["consulted"].items()}
    names = ("well_formed", "finished", *SHARES, LIKELIER)
    shares |= {name: facts[name] for name in names if name in facts}
    counts = ("distinct_reasonings", "masked_reasonings", "distinct_answers", "prompts", "skipped")
    return {
        **{name: share["rate"] for name, share in shares.items()},
        **{name: facts[name] for name in counts if name in facts},
        "intervals": {name: [share["low"], share["high"]] for name, share in shares.items()},
        "n": {kind: share["n"] for kind, share in refused.items()},
        "warnings": warnings_of(results),
    }


def right_shares(rates: Mapping[str, Any]) -> dict[str, float]:
    """Of each kind with a `KIND_refused` in the rates, the share that is treated rightly."""
    refused = {kind: rates.get(f"{kind}_refused") for kind in KINDS}
    return {
        kind: share if kind == "harmful" else 1 - share
        for kind, share in refused.items()
        if share is not None
    }


def answer_all(
    lm: LanguageModel,
    suites: Mapping[str, Sequence[Prompt]],
    attacks: Sequence[Attack],
    asking: Asking,
    *,
    folder: Path,
    facts: dict[str, Any],
    progress: Progress = lambda name, done, total, tokens: None,
) -> list[Asked]:
    """Has every prompt of every suite answered under every attack, or goes on with that.

    The attack "none" asks all prompts as they are, the others the harmful ones. The answers, which
    depend on `facts` beside the arguments, are in `FOLDER/answers/SUITE[.ATTACK].jsonl`, as
    `generate` writes them: a file that is finished is only read. What the run that finished it took
    is in `NAME.pace.json`. `progress` is called at the start of each file and after each batch.

    Returns:
      what was asked, for each suite and attack with prompts.

    Raises:
      InputError: as `generate`, with the name of the suite.
    """
    found = []
    for suite, prompts in suites.items():
        for attack in attacks:
            asked = apply_attack(suite, prompts, attack)
            if not asked.prompts:
                continue
            sent = [(p, x) for p, xs in zip(asked.prompts, asked.sent, strict=True) for x in xs]
            openings = [x.opening for _, x in sent]
            path = folder / ANSWERS / f"{asked.name}.jsonl"
            try:
                made = generate(
                    lm,
                    [dataclasses.replace(p, text=x.text) for p, x in sent],
                    path,
                    asking,
                    openings=openings if any(openings) else None,
                    opening_tokens=attack.opening_tokens,
                    facts=facts,
                    progress=lambda *counts, name=asked.name: progress(name, *counts),
                )
            except InputError as error:
                raise InputError(f"{asked.name}: {error}") from error
            if made is not None:
                pace = {"seconds": made.seconds, "tokens": made.tokens}
                write_json(pace_path(folder, asked.name), pace)
            found.append(asked)
    if not found:
        raise InputError("nothing to ask: attacks are on harmful prompts alone")
    return found


def template_name(template: Template) -> str:
    """Of a template in `jaxalign.data.templates`: "bare" of `bare_messages`."""
    return str(getattr(template, "__name__", "own")).removesuffix("_messages")


def wording_digest(template: Template, rules: Mapping[str, str] | None) -> str:
    """Tells templates apart that have one name and another text, such as another code."""
    said = [message["content"] for message in template("{}")]
    return fingerprint([said, rules])


def pace_path(folder: Path, name: str) -> Path:
    """Where the time is kept that a file of answers took."""
    return folder / ANSWERS / f"{name}.pace.json"


def mean_seconds(folder: Path, name: str, mean_tokens: float | None) -> float | None:
    """How long an answer took: its tokens x the pace of the run that finished the file.

    Prompts and samples share batches, so this is the inverse of the throughput; with one prompt at
    a time and one sample it is the latency. Compilation is part of it, which weighs where that run
    had few answers to make. None without answers or without a pace.
    """
    path = pace_path(folder, name)
    if mean_tokens is None or not path.exists():
        return None
    pace = read_json(path)
    return mean_tokens * pace["seconds"] / pace["tokens"] if pace["tokens"] else None


def judge_all(
    answered: Sequence[tuple[Asked, Sequence[Sequence[Row]]]],
    judges: Sequence[Judge],
    folder: Path,
    *,
    consulting: bool = False,
) -> dict[str, Any]:
    """Judges what was asked and answered, keeps the verdicts, and sums them up.

    They go to `FOLDER/verdicts/SUITE[.ATTACK].jsonl`, a line for each prompt: `prompt`, `kind`,
    and for each answer `scores`, judge -> score, and `well_formed`; `consulting` answers may call a
    tool before their reasoning.

    Returns:
      `answers`: for each suite and attack `describe_answers`'s facts, `describe_language`'s, and
      `mean_seconds`;
      `rates`: those of `rates`; `safety_at_k`: those of `safety`.
    """
    (folder / VERDICTS).mkdir(parents=True, exist_ok=True)
    pattern = CONSULTING_FORMAT_PATTERN if consulting else STRICT_FORMAT_PATTERN
    facts, shares, at_k = [], [], []
    for asked, answers in answered:
        scores = judge_answers(asked, answers, judges)
        name = {"suite": asked.suite, "attack": asked.attack}
        formed = [[verdict_of(own_text(x), pattern)[0] for x in rows] for rows in answers]
        said = describe_answers(answers, formed) | describe_language(asked.prompts, answers)
        seconds = mean_seconds(folder, asked.name, said["mean_tokens"])
        facts.append(name | said | {"mean_seconds": seconds})
        shares += rates(asked, scores, judges)
        at_k += safety(asked, scores, judges)
        lines = [
            {"prompt": prompt.text, "kind": prompt.kind, "scores": given, "well_formed": those}
            for prompt, given, those in zip(asked.prompts, scores, formed, strict=True)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / VERDICTS / f"{asked.name}.jsonl").write_text(text, encoding="ascii")
    return {"answers": facts, "rates": shares, "safety_at_k": at_k}


def probe_all(
    answered: Sequence[tuple[Asked, Sequence[Sequence[Row]]]], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Key words in the reasoning, and what it costs, of answers that have reasoning tags.

    Returns:
      `key_words`: for each suite the curve of `key_words` over answers to harmful prompts; `cost`:
      for each also by kind the means of `reasoning_cost`. Without attacks, which may forge the
      reasoning; empty where no answer reasons in tags.
    """
    curves, costs = [], []
    for asked, answers in answered:
        name = {"suite": asked.suite, "attack": asked.attack}
        rows = [row for group in answers for row in group]
        harmful = [row for row in rows if row["kind"] == "harmful"]
        if asked.attack != "none" or all(split(own_text(x)).reasoning is None for x in rows):
            continue
        if harmful:
            curves.append(name | key_words(harmful, tokenizer))
        costs += [
            name | {"kind": kind} | cost for kind, cost in reasoning_cost(rows, tokenizer).items()
        ]
    return {"key_words": curves, "cost": costs}
