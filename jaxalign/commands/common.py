"""What several commands have in common."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxalign.host.errors import InputError

if TYPE_CHECKING:
    from jaxalign.answers.asking import LanguageModel
    from jaxalign.reports.page import Block

File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")]
# A plain string with the choices in the help: `load_model` answers a wrong one in one line.
DtypeName = Annotated[str, tyro.conf.arg(metavar="{auto,bfloat16,float32}")]

StopTexts = Annotated[
    tuple[tuple[str, ...], ...], tyro.conf.arg(metavar="TEXT ..."), tyro.conf.UseAppendAction
]


def read_stops(given: Sequence[Sequence[str]]) -> tuple[str, ...]:
    r"""The texts of every --stop, in which \n is a line break; refuses an empty one, and none."""
    texts = [text for some in given for text in some or [""]]
    if "" in texts:
        raise InputError("--stop has an empty text; give the words that end an answer")
    return tuple(text.replace("\\n", "\n") for text in texts)


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """How the model's own chat template is taken."""

    chat_template: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Of a model with several chat templates: the name of one; by default `default`."""
    template_date: Annotated[str | None, tyro.conf.arg(metavar="DATE")] = None
    """What a chat template that asks for it takes for today, as YYYY-MM-DD; by default today, or
    the day of answers that are gone on with."""

    def begun(self, answers: Sequence[Path]) -> ChatTemplate:
        """With the date of answers there are, where none is given."""
        return dataclasses.replace(
            self, template_date=kept_fact("template_date", self.template_date, answers)
        )


def note(text: str) -> None:
    """Prints a remark to stderr."""
    print(f"jaxalign: {text}", file=sys.stderr)


def prepare_out(path: Path) -> None:
    """Makes the folder of a file; refuses, before the work is done, one that cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out: {path.parent} cannot be made ({error.strerror}); give another path"
        ) from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"--out: {path} cannot be written; give the path of a file")


def load_model(
    name: str,
    dtype_name: str,
    chat: ChatTemplate = ChatTemplate(),
    adapter: Path | None = None,
) -> LanguageModel:
    """Loads a model to compute in a dtype, which "auto" probes for and says; with an adapter."""
    import jax.numpy as jnp

    from jaxalign.answers.asking import LanguageModel
    from jaxalign.models.precision import named_dtype

    dtype, reason = named_dtype(dtype_name, flag="--dtype")
    given = dataclasses.asdict(chat) | {"adapter": adapter}
    lm = LanguageModel.load(name, jnp.dtype(dtype).name, **given)
    if reason:
        note(reason)
    return lm


def model_with(model: str, adapter: Path | None) -> str:
    """What a table calls a model."""
    return model if adapter is None else f"{model} with {adapter}"


def check_draws(*, temperature: float, seed: int, samples: int) -> None:
    """Refuses what cannot be drawn."""
    if not 0 <= seed < 2**31:
        raise InputError(f"--seed is {seed}; use 0 to {2**31 - 1}")
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise InputError(f"--temperature is {temperature}; use 0 or more")
    if samples > 1 and not temperature:
        raise InputError(f"--samples {samples} would all be the same at --temperature 0; raise it")


@contextlib.contextmanager
def speed_bar() -> Iterator[Any]:
    """A bar for `show(name, done, total, tokens)`: count, tokens per second, time left."""
    from rich.markup import escape

    from jaxalign.host.progress import progress_bar

    with progress_bar(stderr=True) as bar:
        task = bar.add_task("loading", total=None)
        begun: dict[str, float] = {}

        def show(name: str, done: int, total: int, tokens: int) -> None:
            if name not in begun:
                begun[name] = time.monotonic()
                bar.reset(task)
            speed = tokens / max(time.monotonic() - begun[name], 1e-9)
            text = f"{name}, {speed:,.0f} tokens/s" if tokens else name
            bar.update(task, completed=done, total=total, description=escape(text))

        yield show


def kept_fact(name: str, given: str | None, answers: Sequence[Path]) -> str | None:
    """For None what answers there are depend on: files of answers, finished, begun or absent.

    A probe of the dtype on a busy machine may choose another, and tomorrow is another day.
    """
    from jaxalign.answers.batch_files import facts_path
    from jaxalign.host.json_files import read_json

    if given is not None:
        return given
    for path in answers:
        whole = path.with_name(path.name.replace(".part.jsonl", ".jsonl"))
        kept = facts_path(whole)
        if path.exists() and kept.exists() and (found := read_json(kept).get(name)) is not None:
            note(f"{found}: as {kept} has it")
            return str(found)
    return None


def kept_dtype(dtype_name: str, answers: Sequence[Path]) -> str:
    """For "auto" that of answers there are, as `kept_fact` has it."""
    given = None if dtype_name == "auto" else dtype_name
    return kept_fact("dtype", given, answers) or "auto"


def print_table(title: str, block: Block) -> None:
    """Prints a table of `jaxalign.reports.page` to stdout; columns of words wrap.

    Cells are plain text, and may come from a model or a stranger's file.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from jaxalign.reports.printable import printable

    table = Table(title=Text(printable(title)), box=box.SIMPLE_HEAD, title_justify="left")
    gap = "\n" if len(block["headings"]) > 6 else " "  # many columns are to fit into 80
    for number, heading in enumerate(block["headings"]):
        if number < block["texts"]:
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading.replace(" ", gap), justify="right", no_wrap=True)
    for row in block["table"]:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(markup=False, highlight=False).print(table)
