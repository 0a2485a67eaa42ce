"""Self-generated answers in a file: a killed run goes on where it stopped, and ends the same.

Every completion is kept with what the verifiers say, so that the filters of
`jaxalign.methods.cada.selection` can be looked into.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxalign.answers.asking import Answer, Asking, LanguageModel, Progress, read_requests
from jaxalign.answers.batch_files import facts_path, keep_facts, resume
from jaxalign.answers.generation import asking_facts
from jaxalign.data.prompts import Asked, Prompt, Turn, asked
from jaxalign.host.errors import InputError
from jaxalign.host.json_files import read_json
from jaxalign.host.processes import all_of, locked_for_all
from jaxalign.host.step_lines import read_lines
from jaxalign.rewards import verdict_of
from jaxalign.sampling import Stage

ASKED = ("prompts_digest", "template")
"""What a finished file must agree in to be used: what was asked, not who answered and how."""


@dataclasses.dataclass(frozen=True)
class Generated:
    """One completion and what the verifiers say.

    Attributes:
      id: the prompt's.
      prompt: the request.
      category: the hazard.
      completion: the text.
      tokens: its ids, the stop token included: these are learned, the text is never encoded again.
      finished: whether the model ended it.
      well_formed: whether it has the strict format (`rewards.STRICT_FORMAT_PATTERN`).
      refused: whether its answer holds a refusal phrase (`rewards.REFUSAL_PHRASES`).
      conversation: the turns before the request.
    """

    id: str
    prompt: str
    category: str
    completion: str
    tokens: list[int]
    finished: bool
    well_formed: bool
    refused: bool
    conversation: tuple[Turn, ...] = ()

    @property
    def asked(self) -> Asked:
        """The request with the turns before it."""
        return asked(self.prompt, self.conversation)


def self_generate(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    path: Path,
    asking: Asking,
    *,
    progress: Progress = lambda done, total: None,
) -> list[Generated]:
    """Samples G completions of every prompt into a file, or goes on with the file that is there.

    A file that is finished is read as it is, whichever model and seed wrote it, if the same was
    asked: answers can be edited, judged by other means, or learned from by another model. A batch
    that was cut short is drawn again, so a run that was killed any number of times writes the same
    file.

    Args:
      lm: the model.
      prompts: what to ask, harmful requests for CADA.
      path: of the JSON lines, one for each completion; beside it, with the suffix .facts.json, goes
        what they depend on.
      asking: with `max_prompt_tokens`; code and cases of its template are computed once a batch.
      progress: called after each batch with how many prompts are done, and of how many.

    Returns:
      all completions, in the order of the prompts.

    Raises:
      InputError: a prompt is too long, the file is damaged, another process writes it, it was made
        under other facts and is not finished, or it answers something else.
    """
    if not prompts:
        raise InputError("no prompts to answer: self-generation needs harmful ones")

    def describe(answer: Answer, sample: int) -> dict[str, Any]:
        del sample
        prompt, text = prompts[answer.request], lm.text(answer.tokens, answer.ending)
        well_formed, refused = verdict_of(text)
        return {
            "id": prompt.id,
            "prompt": prompt.text,
            "category": prompt.category,
            "completion": text,
            "tokens": answer.tokens.tolist(),
            "finished": answer.finished,
            "well_formed": well_formed,
            "refused": refused,
        } | ({"conversation": prompt.conversation} if prompt.conversation else {})

    facts = asking_facts(lm, prompts, asking)
    vocab_size = lm.model.config.vocab_size
    finished = all_of(_finished(path, facts))
    with contextlib.nullcontext() if finished else locked_for_all(path, "another file"):
        if finished or _finished(path, facts):
            return read_generated(path, vocab_size=vocab_size)
        keep_facts(path, facts, kept=facts_path(path))
        questions = read_requests(lm.tokenizer, [prompt.asked for prompt in prompts], asking)
        questions.check_positions(
            lm.model, asking.max_new_tokens, remedy="use fewer cases, or lower max_new_tokens"
        )
        kept, batches = resume(
            lm, questions, asking, Stage.SELF_GENERATION, path, describe=describe
        )
        generated = read_generated(path, vocab_size=vocab_size)[:kept] if kept else []
        for rows in batches:
            generated += [Generated(**row) for row in rows]
            progress(len(generated) // asking.samples, len(prompts))
        return generated


def read_generated(path: Path, *, vocab_size: int) -> list[Generated]:
    """The completions in a file of `self_generate`, which may have been edited.

    Args:
      path: of the file.
      vocab_size: of the model that is to learn them.

    Raises:
      InputError: there is no such file, or it is damaged; names the line and the field.
    """
    made = []
    kinds = dict.fromkeys(("finished", "well_formed", "refused"), bool)
    lists = dict.fromkeys(("tokens", "conversation"), list)
    for number, (_, row) in enumerate(read_lines(path), start=1):
        values = {name: value for name, value in row.items() if name != "step"}
        if {*values, "conversation"} != {field.name for field in dataclasses.fields(Generated)}:
            raise InputError(f"{path}: not a file of self-generated completions; give another one")
        for name, value in values.items():
            kind = (kinds | lists).get(name, str)
            if not isinstance(value, kind):
                raise InputError(f"{path} line {number}: {name} must be a {kind.__name__}")
        ids = values["tokens"]
        if not ids or not all(type(x) is int and 0 <= x < vocab_size for x in ids):
            raise InputError(
                f"{path} line {number}: tokens must be ids below {vocab_size}, at least one"
            )
        try:
            conversation = tuple(Turn(*turn) for turn in values.pop("conversation", ()))
        except TypeError:
            raise InputError(
                f"{path} line {number}: conversation must be a list of roles with texts"
            ) from None
        made.append(Generated(**values, conversation=conversation))
    return made


def _finished(path: Path, facts: dict[str, Any]) -> bool:
    """Whether a file answers all that is asked, by its own number of samples.

    Raises:
      InputError: it does, of other requests or with something else before them.
    """
    kept = facts_path(path)
    if not path.exists() or not kept.exists():
        return False
    theirs = read_json(kept)
    if len(read_lines(path)) != theirs.get("prompts", -1) * theirs.get("samples", -1):
        return False
    for name in ASKED:
        if theirs.get(name) != facts[name]:
            raise InputError(
                f"{path}: answers another {name}; ask what it was made for (see {kept.name}), or "
                "give another file"
            )
    return True
