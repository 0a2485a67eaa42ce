"""Our models as a model of `lm-eval`, EleutherAI's lm-evaluation-harness; import needs the package.

Text is turned into tokens, contexts are cut and answers are ended as its own class for transformers
does (`lm_eval.models.huggingface.HFLM` of 0.4.13), so that numbers compare with published ones.
What is computed is ours: a context that several continuations follow, the choices of a question, is
computed once; batches are as wide as the next power of two, the longest first.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from jaxalign.answers.asking import Asking, LanguageModel, Progress, Questions, answer_batches
from jaxalign.answers.completing import (
    check_sizes,
    fill,
    in_batches,
    longest_first,
    width_of,
)
from jaxalign.data.order import grouped
from jaxalign.data.templates import chat_text, encode_chat_text, pad
from jaxalign.host.errors import InputError
from jaxalign.host.processes import fetch
from jaxalign.models.heads import logits, output_weight
from jaxalign.models.sharding import to_devices
from jaxalign.models.transformer import Transformer
from jaxalign.records import Params
from jaxalign.sampling import Greedy, Method, Stage, Temperature, TopK, TopP
from jaxalign.text.chat_template import template_date

LEAST_CONTEXT, LEAST_CONTINUATION = 32, 8
"""Contexts are padded to 32, 64, 128, … tokens, continuations to 8, 16, 32, …"""

MAX_NEW_TOKENS = 256
"""Where answers are cut off if the task does not say, as in HFLM."""

NO_PREFIX = np.zeros(0, np.int32)

# Logits held at once, over rows: 128 MB of float32.
_LOGITS = 2**25


_Context = tuple[tuple[int, ...], Sequence[tuple[int, list[int]]]]
"""Tokens, and what follows them: the request's index and the continuation's tokens of each."""


class JaxalignLM(TemplateLM):
    """What tasks of `lm-eval` ask of a model: log-probabilities of texts, and answers.

    Attributes:
      tokenizer: as given.
      max_length: tokens that the model reads at most.
      cut_contexts: how many contexts lost their beginning because they did not fit the model.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        batch_size: int = 16,
        seed: int = 0,
        stop: Sequence[str] = (),
        progress: Progress = lambda done, total: None,
    ) -> None:
        """Casts the parameters to the model's compute dtype.

        `seed` is that of answers that are drawn, `stop` has texts that end an answer beside those
        of a task, and `progress` is told how many requests of a kind are done, and of how many.

        Raises:
          InputError: a batch size below 1.
        """
        check_sizes(batch_size=batch_size)
        super().__init__()
        self.tokenizer: Any = lm.tokenizer
        self.cut_contexts = 0
        self.max_length = lm.model.config.max_positions
        self._lm = lm.cast()
        self._batch_size, self._seed, self._progress = batch_size, seed, progress
        self._stop = tuple(stop)
        # By the text of a chat the places in it that are the template's; lm-eval keeps texts alone.
        self._own: dict[str, list[tuple[int, int]]] = {}

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        end: int = self.tokenizer.eos_token_id
        return end

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context: the one that begins texts, if any."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        """For the names of caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What `lm-eval` adds to the `config` of its results."""
        day = template_date(self.tokenizer)
        return {
            "model_dtype": self._lm.dtype,
            "cut_contexts": self.cut_contexts,
            "stop": list(self._stop),
            "chat_template": getattr(self.tokenizer, "template_name", None),
            **({"template_date": day} if day else {}),
        }

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids of a text, in which the names of added tokens are letters.

        In a chat the template's own are tokens. Where a text names none the ids are HFLM's.
        With `add_special_tokens` None the tokenizer adds its own, such as one that begins texts, if
        it does so by default and the text does not start with it already.
        """
        if add_special_tokens is None:
            begin = self.tokenizer.decode([self.prefix_token_id])
            add_special_tokens = not string.startswith(begin)
        return self._encode(string, self._own.get(string.rstrip(), ()), add_special_tokens)

    def _encode(
        self, text: str, own: Sequence[tuple[int, int]], add_special_tokens: bool
    ) -> list[int]:
        ids = encode_chat_text(self.tokenizer, text, own)
        return [*(self.tokenizer.encode("") if add_special_tokens else []), *ids]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        own = self._own.get(context.rstrip())
        if own is None:
            pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
            return pair
        opened = not context.startswith(self.tokenizer.decode([self.prefix_token_id]))
        before = self._encode(context.rstrip(), own, opened)
        whole = self._encode(context + continuation, own, opened)
        return before, whole[len(before) :]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a chat, with the opening of the answer or with an unfinished last message."""
        unfinished = not add_generation_prompt
        text, own = chat_text(self.tokenizer, chat_history, unfinished=unfinished)
        self._own[text.rstrip()] = own
        return text

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Of each pair log π(continuation | context), and whether greedy would say it.

        It is theirs, but for the bar, which lm-eval would draw into ours.
        """
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
        return scores

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Of each whole text log π, in windows of the model's length, each token predicted once."""
        windows, owners = [], []
        for index, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((("", ""), *make_disjoint_window(window)))
                owners.append(index)
        totals = np.zeros(len(requests))
        for owner, (logp, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += logp
        return [float(total) for total in totals]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        by_context: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            if continuation:
                tokens = tuple(self._cut(context, self.max_length + 1 - len(continuation)))
                by_context.setdefault(tokens, []).append((index, continuation))
        contexts = [
            (context, part)
            for context, followers in by_context.items()
            for part in in_batches(followers, self._batch_size)
        ]
        contexts.sort(key=lambda item: (-len(item[1]), -len(item[0])))
        total = sum(map(len, by_context.values()))
        scores: dict[int, tuple[float, bool]] = {}
        first = 0
        while first < len(contexts):
            group_size = len(contexts[first][1])
            size = min(self._batch_size // group_size, len(contexts))
            scores |= self._score(contexts[first : first + size], size, group_size)
            first += size
            self._progress(len(scores), total)
        # An empty continuation is certain.
        return [scores.get(index, (0.0, True)) for index in range(len(requests))]

    def _score(
        self, batch: Sequence[_Context], size: int, group_size: int
    ) -> dict[int, tuple[float, bool]]:
        """Scores by the request's index, of up to `group_size` followers of each context."""
        contexts = fill([tokens for tokens, _ in batch], size)
        prompts = pad(contexts, width_of(contexts, least=LEAST_CONTEXT, most=self.max_length))
        rows: list[list[int]] = [[] for _ in range(size * group_size)]
        indices = {}
        for place, (_, followers) in enumerate(batch):
            for row, (index, continuation) in enumerate(followers, place * group_size):
                rows[row], indices[row] = continuation, index
        tokens = pad(rows, width_of(rows, least=LEAST_CONTINUATION, most=self.max_length))
        arrays = to_devices((*prompts, *tokens), self._lm.model.mesh, rows=True)
        logps, greedy = fetch(_sums(self._lm.model, self._lm.params, *arrays))
        return {i: (float(logps[row]), bool(greedy[row])) for row, i in indices.items()}

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The answer to each context, up to the first of the texts that end it.

        Greedy, unless a request asks for `do_sample` with a `temperature`, perhaps with `top_p` or
        `top_k`.

        Raises:
          InputError: no room for a context, or a setting of sampling that is not known here.
        """
        answers = [""] * len(requests)
        alike = grouped(range(len(requests)), lambda i: repr(sorted(requests[i].args[1].items())))
        done = 0
        for indices in alike.values():
            end = self.tokenizer.decode([self.eot_token_id])
            until, asking = _settings(requests[indices[0]].args[1], end, self._seed)
            until = [*until, *self._stop]
            asking = dataclasses.replace(asking, stop=tuple(text for text in until if text))
            room = self.max_length - asking.max_new_tokens
            texts = [requests[i].args[0] for i in indices]
            encoded = [self.tok_encode(text) or [self.eot_token_id] for text in texts]
            contexts = [self._cut(ids, room) for ids in encoded]
            order = longest_first(range(len(contexts)), contexts)
            questions = Questions(NO_PREFIX, contexts, in_batches(order, self._batch_size))
            for batch in answer_batches(self._lm, questions, asking, Stage.UTILITY):
                for answer in batch:
                    text = self._lm.text(answer.written, answer.ending)
                    whole = postprocess_generated_text(text, until, None)
                    answers[indices[answer.request]] = whole
                done += len(batch)
                self._progress(done, len(requests))
        return answers

    def _cut(self, context: list[int], room: int) -> list[int]:
        """The end of a context; at least one token of it is needed."""
        if room < 1:
            raise InputError(
                f"the model reads {self.max_length} tokens, which leaves no room for the context "
                "of a request; take a model with more, or ask for fewer new tokens"
            )
        self.cut_contexts += len(context) > room
        return context[-room:]


def _settings(given: dict[str, Any], end: str, seed: int) -> tuple[list[str], Asking]:
    """The texts that end an answer, and how it is made, as a request has it."""
    known: dict[str, Any] = dict(normalize_gen_kwargs(given, MAX_NEW_TOKENS))
    until = handle_stop_sequences(known.pop("until"), end)
    new_tokens = known.pop("max_gen_toks")
    if new_tokens < 1:
        raise InputError(f"generation_kwargs: max_gen_toks is {new_tokens}; use 1 or more")
    draws, temperature = known.pop("do_sample"), float(known.pop("temperature", 0))
    top_p, top_k = known.pop("top_p", None), known.pop("top_k", None)
    if known:
        raise InputError(
            f"generation_kwargs: {', '.join(sorted(known))} is not known here; leave it out "
            "(until, max_gen_toks, do_sample, temperature, top_p and top_k are)"
        )
    method: Method = Greedy()
    if draws and temperature:
        if top_p is not None and top_k is not None:
            raise InputError("generation_kwargs: give top_p or top_k, not both")
        try:
            if top_p is not None:
                method = TopP(float(top_p), temperature)
            elif top_k is not None:
                method = TopK(int(top_k), temperature)
            else:
                method = Temperature(temperature)
        except ValueError as error:
            raise InputError(f"generation_kwargs: {error}") from error
    return until, Asking(method=method, max_new_tokens=new_tokens, seed=seed)


@functools.partial(jax.jit, static_argnums=0)
def _sums(
    model: Transformer,
    params: Params,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    tokens: jax.Array,
    mask: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Σ_t log π(y_t | prompt, y_<t), and whether every y_t is the most probable token.

    Of N prompts and their mask, `[N, P]`, and B = N·G answers, `[B, T]`, the G of one prompt next
    to each other: `[B]` float32 and `[B]` bool. The logits of a few rows of B·T are held at once,
    128 MB in all.
    """
    chex.assert_rank([prompts, prompt_mask, tokens, mask], 2)
    chex.assert_equal_shape([tokens, mask])
    hidden = model.states(params, prompts, prompt_mask, tokens, mask)
    weight = output_weight(params)

    def one(row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        state, token = row
        z = logits(state, weight)
        return z[token] - jax.nn.logsumexp(z), jnp.argmax(z) == token

    rows = hidden.reshape(tokens.size, -1), tokens.reshape(-1)
    at_once = max(1, _LOGITS // weight.shape[0])
    logps, best = (
        x.reshape(tokens.shape)
        for x in jax.lax.map(one, rows, batch_size=min(at_once, tokens.size))
    )
    return jnp.where(mask, logps, 0.0).sum(axis=1), jnp.all(best | ~mask, axis=1)
