"""One way to ask a model: requests become tokens, batches of one shape, and answers.

Sample s of request r draws as row r·G + s of one large batch, so that answers do not depend on how
the requests are divided (up to rounding). The next batch is under way while an answer is read.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxalign.answers.completing import (
    Stops,
    check_sizes,
    fill,
    find_stops,
    in_batches,
    width_of,
)
from jaxalign.data.prompts import Asked
from jaxalign.data.templates import Template, Tokenizer, bare_messages, encode_prompts, pad
from jaxalign.host.errors import InputError
from jaxalign.host.processes import fetch
from jaxalign.models import load_pretrained
from jaxalign.models.completion import compute_params
from jaxalign.models.files.adapters import put_on
from jaxalign.models.files.weights import weights_digest
from jaxalign.models.lora import is_on_base
from jaxalign.models.precision import named_dtype
from jaxalign.models.sharding import to_devices
from jaxalign.models.transformer import Transformer
from jaxalign.records import Params
from jaxalign.sampling import Endings, Greedy, Method, Stage, Tool, sample, stage_key
from jaxalign.text.encoding import decode

LEAST_WIDTH = 32
"""Batches that go by length are padded to 32, 64, 128, … tokens, or to the longest of all."""

Progress = Callable[[int, int], None]
"""`(done, total)`, called after each batch."""


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A model that can be asked.

    Attributes:
      model: the decoder.
      params: its parameters, in float32 or in the compute dtype.
      tokenizer: a fast Hugging Face tokenizer with a chat template.
      weights: `weights_digest` of the parameters as they were loaded; "" where these are those.
    """

    model: Transformer
    params: Params
    tokenizer: Tokenizer
    weights: str = ""

    @classmethod
    def load(
        cls,
        name: str | Path,
        dtype: str = "auto",
        *,
        chat_template: str | None = None,
        template_date: str | None = None,
        adapter: str | Path | None = None,
    ) -> "LanguageModel":
        """Loads a model, its parameters in the compute dtype: auto, bfloat16 or float32.

        The name is `smollm2`, a .gguf file, a Hugging Face folder or a hub id; it and the other
        arguments are those of `load_pretrained`. With `adapter`, a folder of `save_adapter` or of
        PEFT, it runs with that, unmerged.

        Raises:
          InputError: an unknown dtype, or a model or adapter that cannot be loaded.
        """
        chosen, _ = named_dtype(dtype)
        model, params, tokenizer = load_pretrained(
            name, dtype=chosen, chat_template=chat_template, template_date=template_date
        )
        if adapter is not None:
            model, params = put_on(adapter, model, params, name=name)
        return cls(model, params, tokenizer, _digest(model, params)).cast()

    @property
    def dtype(self) -> str:
        """The name of the compute dtype."""
        return jnp.dtype(self.model.dtype).name

    @property
    def digest(self) -> str:
        """What tells these weights from others."""
        return self.weights or _digest(self.model, self.params)

    def cast(self) -> "LanguageModel":
        """The same with its parameters in the compute dtype, to be used many times."""
        return dataclasses.replace(self, params=compute_params(self.params, self.model.dtype))

    def text(self, ids: np.ndarray, ending: int = 0) -> str:
        """What ids spell, special tokens left out: the text that the verifiers judge.

        The last `ending` characters are left out too, as `Answer.ending` says.
        """
        text = decode(self.tokenizer, ids, np.ones(len(ids), bool))
        return text[: len(text) - ending]

    def stops(self, more: Sequence[str] = ()) -> Stops:
        """What ends an answer: `find_stops`, whose part without `more` is found once."""
        return self._stops.joined(more, self.tokenizer)

    @functools.cached_property
    def _stops(self) -> Stops:
        return find_stops(self.model, self.tokenizer)

    @functools.cached_property
    def _endings(self) -> Callable[[tuple[str, ...]], Endings | None]:
        return functools.lru_cache(8)(functools.partial(Endings.build, tokenizer=self.tokenizer))


def _digest(model: Transformer, params: Params) -> str:
    """`weights_digest`, and of an adapter the scale too, which is not among the parameters."""
    scale = f"-{model.lora.scale:g}" if is_on_base(params) else ""
    return weights_digest(params) + scale


@dataclasses.dataclass(frozen=True)
class Asking:
    """How requests are put to a model.

    Attributes:
      template: turns a request into messages (`jaxalign.data.templates`).
      tool: what answers may call.
      method: how tokens are chosen.
      samples: G answers to each request.
      max_prompt_tokens: the most tokens that a request may take beyond what all share; None: any.
      max_new_tokens: where answers are cut off, a tool's part included.
      batch_size: requests at a time.
      seed: of a method that draws.
      stop: texts and names of tokens that end an answer beside the model's own (`find_stops`).

    Raises:
      InputError: a size below 1, or a stop that is no text.
    """

    template: Template = bare_messages
    tool: Tool | None = None
    method: Method = Greedy()
    samples: int = 1
    max_prompt_tokens: int | None = None
    max_new_tokens: int = 64
    batch_size: int = 32
    seed: int = 0
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_sizes(
            samples=self.samples,
            max_prompt_tokens=self.max_prompt_tokens,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
        )
        if isinstance(self.stop, str):
            raise InputError(f"stop must be several texts; write [{self.stop!r}] for one")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise InputError(f"stop is {self.stop!r}; give texts, none of them empty")


class Answer(NamedTuple):
    """One answer.

    Attributes:
      request: the number of the request.
      tokens: the ids that the model generated, those that ended the answer included.
      written: these and a tool's.
      finished: whether the model ended it; if not, it was cut off.
      consulted: whether it called the tool.
      ending: how many characters at the end of its text are words that ended it, and no part of it.
    """

    request: int
    tokens: np.ndarray
    written: np.ndarray
    finished: bool
    consulted: bool
    ending: int = 0


@dataclasses.dataclass(frozen=True)
class Questions:
    """Requests as a model reads them.

    Attributes:
      prefix: `[P0]` int32, the ids that open all of them.
      rows: the ids of each behind those, an opening of its answer included.
      batches: the numbers of the requests of each batch; the last may be smaller.
      width: of every batch; None: as `width_of` has it for each.
    """

    prefix: np.ndarray
    rows: Sequence[Sequence[int]]
    batches: Sequence[Sequence[int]]
    width: int | None = None

    @property
    def longest(self) -> int:
        """The most tokens that a batch is wide."""
        return self.width or max(len(self.rows[i]) for batch in self.batches for i in batch)

    def check_positions(
        self,
        model: Transformer,
        new_tokens: int,
        remedy: str = "ask for fewer new tokens, or for shorter prompts",
    ) -> None:
        """Refuses what does not fit the model's context with its answer."""
        positions = model.config.max_positions
        if len(self.prefix) + self.longest + new_tokens > positions:
            raise InputError(
                f"{len(self.prefix)} tokens of the template, {self.longest} for the prompt "
                f"and {new_tokens} new ones exceed the model's {positions} positions; {remedy}"
            )


def read_requests(tokenizer: Tokenizer, requests: Sequence[Asked], asking: Asking) -> Questions:
    """Encodes at least one request; batches of one shape, of all as they come.

    Raises:
      InputError: one takes more than `max_prompt_tokens`.
    """
    limit = asking.max_prompt_tokens or sys.maxsize
    encoded = encode_prompts(tokenizer, asking.template, requests, max_tokens=limit)
    rows = [tokens[there] for tokens, there in zip(encoded.tokens, encoded.mask, strict=True)]
    batches = in_batches(range(len(rows)), asking.batch_size)
    width = asking.max_prompt_tokens or max(map(len, rows))
    return Questions(encoded.prefix, rows, batches, width)


def answer_batches(
    lm: LanguageModel,
    questions: Questions,
    asking: Asking,
    stage: Stage,
    *,
    first: int = 0,
) -> Iterator[list[Answer]]:
    """The answers of each batch from `first` on, G to a request, those of one next to each other.

    A stage of a run has noise of its own.

    Raises:
      InputError: texts are to end answers, and the tokenizer's tokens can't be read.
    """
    stops = lm.stops(asking.stop)
    lm, endings = lm.cast(), lm._endings(stops.texts)
    prefix = to_devices(questions.prefix, lm.model.mesh)
    key = stage_key(asking.seed, stage)

    def launch(batch: Sequence[int]) -> Any:
        filled = fill(batch, len(questions.batches[0]))
        rows = [questions.rows[number] for number in filled]
        noise = np.array(filled)[:, None] * asking.samples + np.arange(asking.samples)
        width = questions.width or width_of(rows, least=LEAST_WIDTH, most=questions.longest)
        tokens, mask = to_devices(pad(rows, width), lm.model.mesh, rows=True)
        return batch, sample(
            lm.model,
            lm.params,
            tokens,
            mask,
            key,
            samples_per_prompt=asking.samples,
            max_new_tokens=asking.max_new_tokens,
            method=asking.method,
            stop=stops.tokens,
            prefix=prefix,
            tool=asking.tool,
            rows=jnp.asarray(noise.reshape(-1), jnp.int32),
            endings=endings,
        )

    launched = map(launch, questions.batches[first:])
    # `pairwise` takes the next before it hands out one: the device does not wait for the reader.
    for (batch, made), _ in itertools.pairwise(itertools.chain(launched, [None])):
        rollout = fetch(dataclasses.replace(made, logps=None))  # which no answer has
        rows = range(len(batch) * asking.samples)
        yield [_answer(lm, stops, batch[row // asking.samples], row, rollout) for row in rows]


def _answer(lm: LanguageModel, stops: Stops, request: int, row: int, rollout: Any) -> Answer:
    tokens, mask, present = (x[row] for x in (rollout.tokens, rollout.mask, rollout.present))
    last = ""  # what the model wrote behind a tool's last answer, where words may have ended it
    if stops.texts:
        behind = max(np.flatnonzero(present & ~mask), default=-1) + 1
        last = lm.text(tokens[behind:][mask[behind:]])
    return Answer(
        request,
        tokens=tokens[mask],
        written=tokens[present],
        finished=bool(rollout.finished[row]),
        consulted=bool(rollout.mode[row]),
        ending=len(last) - len(stops.before(last)),
    )


def answers(
    lm: LanguageModel,
    requests: Sequence[str],
    asking: Asking,
    *,
    progress: Progress = lambda done, total: None,
) -> list[Answer]:
    """Answers to every request, in order; all batches have one shape.

    `progress` is called after each batch with how many requests are done, and of how many.

    Raises:
      InputError: no requests, or one that is too long, or does not fit the model's context with
        its answer.
    """
    if not requests:
        raise InputError("no requests to answer; give at least one")
    if isinstance(requests, str) or not all(isinstance(one, str) for one in requests):
        raise InputError("requests must be a list of texts")
    questions = read_requests(lm.tokenizer, requests, asking)
    questions.check_positions(lm.model, asking.max_new_tokens)
    found: list[Answer] = []
    for batch in answer_batches(lm, questions, asking, Stage.ANSWERS):
        found += batch
        progress(len(found) // asking.samples, len(requests))
    return found


def ask(lm: LanguageModel, requests: Sequence[str], **asking: Any) -> list[str]:
    """The texts of `answers`, with fields of `Asking` by name.

    ask(LanguageModel.load("smollm2"), ["Name a river."], max_new_tokens=64)
    """
    made = answers(lm, requests, Asking(**asking))
    return [lm.text(answer.written, answer.ending) for answer in made]
