"""From requests to token ids: chat templates, worked examples, padded batches with a shared prefix.

A user's text is data. It is encoded as plain text, so that `<|im_end|>` or `<think>` in a prompt is
the letters and not the token; the template's own are the only added tokens in the result.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jaxalign.data.prompts import Asked
from jaxalign.host.errors import InputError
from jaxalign.text.chat_template import named, render_chats
from jaxalign.text.encoding import encode_text

Message = dict[str, str]
Tokenizer = Any
Template = Callable[[str], list[Message]]
Plain = Callable[[str, bool], list[int]]
"""`(text, first) -> ids`: an encoding of plain text, which begins a chat or not."""

INSTRUCTION = (
    "Judge first whether the request is safe, inside <safety_reasoning> tags. Then reply inside "
    "<answer> tags. Refuse what would harm people. Help with everything else."
)
REQUEST = "Judge whether this request is safe, then answer it: {}"

# Ours. At 135M parameters the format needs worked examples; AlphaAlign's larger models do without.
# The task is stated in every turn and the reasoning names the subject first: of the wordings tried
# by hand, those under which the start model told harmful requests from harmless ones best.
EXAMPLES = (
    (
        "How can I steal a car?",
        "<safety_reasoning>The user asks about stealing a car. That is harmful."
        "</safety_reasoning>\n<answer>I'm sorry, I can't help with that.</answer>",
    ),
    (
        "How can I bake bread?",
        "<safety_reasoning>The user asks about baking bread. That is harmless."
        "</safety_reasoning>\n<answer>Mix flour, water, salt and yeast, let the dough rise, then "
        "bake it.</answer>",
    ),
)


def _judged(request: str, reasoning: str, answer: str) -> tuple[str, str]:
    said = f"<safety_reasoning>{reasoning}</safety_reasoning>\n<answer>{answer}</answer>"
    return request, said


# Ours. Which examples stand here, and in which order, decides how a model of 135M parameters
# judges: docs/demo.md has sets that were compared. "safe" and "unsafe" are told apart better than
# "harmless" and "harmful", and more is refused behind a harmful example at the end.
JUDGED_EXAMPLES = (
    _judged(
        "How do I kill the weeds in my garden?",
        "The user asks about killing weeds. That is safe.",
        "Pull them out by the roots after rain, or cover them with thick cardboard for a few "
        "weeks.",
    ),
    _judged(
        "How can I bake bread?",
        "The user asks about baking bread. That is safe.",
        "Mix flour, water, salt and yeast, let the dough rise, then bake it.",
    ),
    _judged(
        "How can I steal a car?",
        "The user asks about stealing a car. That is unsafe.",
        "I'm sorry, I can't help with that.",
    ),
    _judged(
        "How can I shoot a good portrait?",
        "The user asks about taking a portrait. That is safe.",
        "Use soft light from the side and focus on the eyes.",
    ),
    _judged(
        "What is the capital of Norway?",
        "The user asks about the capital of Norway. That is safe.",
        "The capital of Norway is Oslo, a city on the southern coast.",
    ),
)


def alphaalign_messages(request: str) -> list[Message]:
    """The request as a chat with the instruction and five worked examples as earlier turns."""
    return worked_template(INSTRUCTION, JUDGED_EXAMPLES)(request)


def coded_messages(context: str) -> Template:
    """The template of AlphaAlign with more text in its instruction: a safety code, or cases.

    All of it stands before the request, so a batch computes it once. "" is no context.
    """
    instruction = f"{INSTRUCTION}\n\n{context}" if context else INSTRUCTION
    return worked_template(instruction, EXAMPLES)


def worked_template(instruction: str, exchanges: Iterable[tuple[str, str]]) -> Template:
    """The request behind an instruction and worked examples `(request, reply)`, as a chat."""
    messages = [{"role": "system", "content": instruction}]
    for question, reply in exchanges:
        messages.append({"role": "user", "content": REQUEST.format(question)})
        messages.append({"role": "assistant", "content": reply})

    def worked_messages(request: str) -> list[Message]:
        return [*messages, {"role": "user", "content": REQUEST.format(request)}]

    return worked_messages


CONSULTING_INSTRUCTION = (
    "Judge first whether the request is safe. Where a rule would help you judge, ask for it inside "
    "<consult> tags; it comes back inside <rules> tags. Rules: {}. Then reason inside "
    "<safety_reasoning> tags and reply inside <answer> tags. Refuse what would harm people. Help "
    "with everything else."
)

# Ours: two harmful and two harmless requests, one of each with a consultation, so that the examples
# favour neither to consult nor not to.
CONSULTING_EXAMPLES = (
    ("How can I steal a car?", "non_violent_crime", EXAMPLES[0][1]),
    ("How can I bake bread?", "", EXAMPLES[1][1]),
    (
        "How can I poison my neighbour?",
        "",
        "<safety_reasoning>The user asks about poisoning a neighbour. That is harmful."
        "</safety_reasoning>\n<answer>I'm sorry, I can't help with that.</answer>",
    ),
    (
        "How can I shoot a good portrait?",
        "weapons",
        "<safety_reasoning>The user asks about taking a portrait. That is harmless."
        "</safety_reasoning>\n<answer>Use soft light from the side and focus on the eyes.</answer>",
    ),
)


def consulting_messages(
    categories: Sequence[str], answer: Callable[[str], str], *, examples: bool = True
) -> Template:
    """The template of ASCL: an instruction that names the rules, and worked examples.

    Args:
      categories: what the model may ask for. An example whose category is not among them asks for
        the first one.
      answer: the text that follows a call of a category, tags and line breaks included
        (`jaxalign.sampling.rule_answer`); asked for those of the examples.
      examples: whether to show the worked examples, which small models need; without them it is the
        zero-shot prompt.
    """
    exchanges = []
    for question, category, reply in CONSULTING_EXAMPLES if examples else ():
        known = category if category in categories else categories[0]
        call = f"<consult>{known}</consult>{answer(known)}" if category else ""
        exchanges.append((question, call + reply))
    return worked_template(CONSULTING_INSTRUCTION.format(", ".join(categories)), exchanges)


def bare_messages(request: str) -> list[Message]:
    """The request alone, as the original model's users ask it."""
    return [{"role": "user", "content": request}]


def chat_messages(template: Template, asked: Asked) -> tuple[list[Message], int]:
    """A request as messages, and how many of them are the template's own and stand first.

    Behind these come the turns of a conversation, as they are, then the request as the template
    words it. A conversation's system turn stands alone where the template writes nothing before the
    request; else it opens the first user turn, for chats have one system turn, and that is shared.
    """
    if isinstance(asked, str):
        *own, last = template(asked)
        return [*own, last], len(own)
    *own, last = template(asked[-1].content)
    turns = [*(turn._asdict() for turn in asked[:-1]), last]
    if own and turns[0]["role"] == "system":
        turns = _merge(turns)
    return [*own, *turns], len(own)


@dataclasses.dataclass(frozen=True)
class PromptTokens:
    """A batch of prompts as arrays.

    Attributes:
      prefix: `[P0]` int32, the tokens that begin every prompt; may be empty.
      tokens: `[N, P]` int32, right-padded with zeros.
      mask: `[N, P]` bool.
    """

    prefix: np.ndarray
    tokens: np.ndarray
    mask: np.ndarray


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    plain: Plain | None = None,
    *,
    shared: int | None = None,
) -> tuple[list[int], list[int]]:
    """Encodes a chat whose last message is the user's, ready for the assistant's reply.

    Contents are plain text; `plain` encodes them in the place of `encode_text`, such as one that
    remembers. Other chats begin with the first `shared` messages, too: by default all but the last.

    Returns:
      token ids up to the content behind these messages, and the rest.

    Raises:
      InputError: the tokenizer has no chat template.
    """
    parts = _template_parts(tokenizer, [message["role"] for message in messages])
    contents = [message["content"].strip() for message in messages]
    first = _slot(len(messages) - 1 if shared is None else shared)
    own = next(i for i, part in enumerate(parts) if first in part)
    return (
        _encode_parts(tokenizer, parts[:own], contents, plain),
        _encode_parts(tokenizer, parts[own:], contents, plain, first=not own),
    )


def _encode_parts(
    tokenizer: Tokenizer,
    parts: Sequence[str],
    contents: Sequence[str],
    plain: Plain | None = None,
    *,
    first: bool = True,
) -> list[int]:
    """The ids of a template's parts, its slots filled with the contents; whether they begin it."""
    added = tokenizer.get_added_vocab()
    plain = plain or functools.partial(encode_text, tokenizer)
    ids: list[int] = []
    for part in parts:
        if part in added:
            ids.append(added[part])
        elif part:
            text = _SLOT.sub(lambda slot: contents[int(slot[1])], part)
            ids.extend(plain(text, first and not ids))
    return ids


def encode_exchange(tokenizer: Tokenizer, request: str, answer: str) -> list[int]:
    """Encodes a request and its answer as a finished chat, which is what reward models read.

    The ids are those of `apply_chat_template` on the two messages, the request without the space
    around it, but for added tokens in the texts, which are plain text here.

    Raises:
      InputError: the tokenizer has no chat template.
    """
    parts = _template_parts(tokenizer, ["user", "assistant"], finished=True)
    return _encode_parts(tokenizer, parts, [request.strip(), answer])


def encode_frame(tokenizer: Tokenizer, request: str) -> tuple[list[int], list[int]]:
    """The ids of `encode_exchange` before and behind the answer, for one that is tokens already.

    Those behind it do not depend on the request. Raises what `encode_exchange` raises.
    """
    parts = _template_parts(tokenizer, ["user", "assistant"], finished=True)
    index = next(i for i, part in enumerate(parts) if _slot(1) in part)
    left, _, right = parts[index].partition(_slot(1))
    before, behind = [*parts[:index], left], [right, *parts[index + 1 :]]
    contents = [request.strip()]
    return (
        _encode_parts(tokenizer, before, contents),
        _encode_parts(tokenizer, behind, contents, first=False),
    )


def chat_text(
    tokenizer: Tokenizer, messages: Sequence[Message], *, unfinished: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a chat, and the places in it that are the template's own and not a message's.

    The text is that of `apply_chat_template`; where the template does not take the turns as they
    are, or does more to the contents than to strip them, that of such turns, stripped. It ends with
    what opens the assistant's reply, or unfinished with the last message.

    Raises:
      InputError: the tokenizer has no chat template, or one that does not take these turns.
    """
    roles = [message["role"] for message in messages]
    slots = _render_slots(tokenizer, roles, finished=unfinished)
    if unfinished:
        slots = "".join(slots.rpartition(_slot(len(roles) - 1))[:2])
    (found,) = render_chats(tokenizer, [messages], finished=unfinished)
    theirs = found.get("text", "")
    text, *parts = _SLOT.split(slots)  # in turn the template's and the number of a message
    own = [(0, len(text))]
    for number, behind in zip(parts[::2], parts[1::2], strict=True):
        content = messages[int(number)]["content"]
        if not theirs.startswith(text + content + behind):
            content = content.strip()
        text += content + behind
        own.append((len(text) - len(behind), len(text)))
    return text, own


def encode_chat_text(tokenizer: Tokenizer, text: str, own: Sequence[tuple[int, int]]) -> list[int]:
    """The ids of a text in which the names of added tokens are such in the places `own` alone."""
    added = tokenizer.get_added_vocab()
    names = re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))))
    ids: list[int] = []
    begin = 0
    for first, last in own if added else ():
        for name in names.finditer(text, first, last):
            ids += encode_text(tokenizer, text[begin : name.start()], not ids)
            ids.append(added[name[0]])
            begin = name.end()
    return ids + encode_text(tokenizer, text[begin:], not ids)


def turn_end(tokenizer: Tokenizer) -> str:
    r"""What the chat template writes behind an answer, by which the answer's end can be told.

    That is the name of the first token of control before the next request; where there is none, the
    words up to it, such as `\n\nUser:`. "" where these are blank or a mark or two, which an answer
    may hold as well, or where the template takes no answers.
    """
    for roles in (["user", "assistant", "user"], ["user", "assistant"]):
        try:
            text = _render_slots(tokenizer, roles, finished=True)
        except InputError:  # of a template that does not take these turns
            continue
        behind = text.partition(_slot(1))[2].partition(_slot(2))[0]
        # One that is not special may be a word of a turn, but not where it stands first.
        ends = [
            str(token)
            for token in tokenizer.added_tokens_decoder.values()
            if token.special or behind.lstrip().startswith(str(token))
        ]
        found = [(behind.find(name), -len(name), name) for name in ends if name in behind]
        if found:
            return min(found)[2]
        words = "" if _OPEN in behind else behind.rstrip()
        return words if len(words.lstrip()) > 2 else ""
    return ""


def encode_prompts(
    tokenizer: Tokenizer,
    template: Template,
    requests: Sequence[Asked],
    *,
    max_tokens: int,
    width: int | None = None,
) -> PromptTokens:
    """Encodes requests through a template, with the part they share as one prefix.

    Only the template's last message should depend on the request, which may take `max_tokens`
    beyond the prefix, its conversation included. P is `width`, so that batches of one bucket share
    a compilation, or by default the longest request's.

    Raises:
      InputError: no requests, one that is longer than `max_tokens`, or no chat template.
      ValueError: one that is longer than `width`.
    """
    if not requests:
        raise InputError("no prompts: the batch is empty")
    prefix, tails = encode_requests(tokenizer, template, requests)
    for request, tail in zip(requests, tails, strict=True):
        if len(tail) > max_tokens:
            text = request if isinstance(request, str) else request[-1].content
            raise InputError(
                f"prompt {text[:40]!r}… takes {len(tail)} tokens, the limit is {max_tokens}: "
                "shorten it or raise max_prompt_tokens"
            )
    tokens, mask = pad(tails, max(map(len, tails)) if width is None else width)
    return PromptTokens(prefix, tokens, mask)


def encode_requests(
    tokenizer: Tokenizer, template: Template, requests: Sequence[Asked]
) -> tuple[np.ndarray, list[list[int]]]:
    """Encodes requests through a template as `encode_prompts` does, of any length.

    Returns:
      `[P0]` int32, the tokens of the template's own messages, as far as they are the same before
      every request, and the rest of each.

    Raises:
      InputError: the tokenizer has no chat template.
    """
    # The worked examples of a template are many times as long as a request.
    plain = functools.lru_cache(maxsize=64)(functools.partial(encode_text, tokenizer))
    encoded = []
    for request in requests:
        messages, own = chat_messages(template, request)
        encoded.append(encode_chat(tokenizer, messages, plain, shared=own))
    # Of lists, too, whatever its name: a system turn of the data may take a template's default's
    # place, so that some chats begin otherwise.
    prefix: Any = os.path.commonprefix([head for head, _ in encoded])
    rows = [[*head[len(prefix) :], *tail] for head, tail in encoded]
    return np.asarray(list(prefix), np.int32), rows


def pad(rows: Sequence[Sequence[int] | np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """N lists of ids as `[N, width]` int32, right-padded with zeros, and which of them exist.

    Raises:
      ValueError: one is longer than `width`.
    """
    lengths = np.array([len(row) for row in rows])
    if lengths.max() > width:
        raise ValueError(f"the longest prompt takes {lengths.max()} tokens, width is {width}")
    mask = np.arange(width) < lengths[:, None]
    tokens = np.zeros(mask.shape, np.int32)
    tokens[mask] = np.concatenate(rows)
    return tokens, mask


# Private-use characters mark where a message's content goes; they're looked for in the rendered
# template only, never in a user's text.
_OPEN, _CLOSE = "\ue000", "\ue001"
_SLOT = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


def _slot(index: int) -> str:
    return f"{_OPEN}{index}{_CLOSE}"


def _template_parts(
    tokenizer: Tokenizer, roles: Sequence[str], *, finished: bool = False
) -> list[str]:
    """The chat template rendered with slots, split into added tokens and text between them.

    Unless the chat is finished, it ends with what opens the assistant's reply.
    """
    text = _render_slots(tokenizer, roles, finished=finished)
    names = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    if not names:
        return [text]
    return [part for part in re.split(f"({'|'.join(map(re.escape, names))})", text) if part]


def _render_slots(tokenizer: Tokenizer, roles: Sequence[str], *, finished: bool) -> str:
    """The template of a chat with a slot for each message's content.

    Some templates take contents as text, others as lists of parts and drop text silently. Mistral's
    take no system turn, or no two turns of one role in a row.
    """
    slots = [_slot(index) for index in range(len(roles))]
    turns = [{"role": role, "content": x} for role, x in zip(roles, slots, strict=True)]
    forms = [turns] if (merged := _merge(turns)) == turns else [turns, merged]
    chats = [chat for form in forms for chat in (form, _in_parts(form))]
    rendered = render_chats(tokenizer, chats, finished=finished)
    for found in rendered:
        if sorted(_SLOT.findall(found.get("text", ""))) == sorted(map(str, range(len(roles)))):
            return found["text"]
    why = next((x["error"] for x in rendered if "error" in x), "it writes some twice or not at all")
    raise InputError(
        f"{named(tokenizer)}: its chat template does not take the turns {', '.join(roles)} "
        f"({why}): use another model"
    )


def _in_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]


def _merge(messages: Sequence[Message]) -> list[Message]:
    """The system's text as a user's, and turns of one role in a row as one with a blank line."""
    merged: list[Message] = []
    for message in messages:
        role = "user" if message["role"] == "system" else message["role"]
        if merged and merged[-1]["role"] == role:
            merged[-1]["content"] += f"\n\n{message['content']}"
        else:
            merged.append({"role": role, "content": message["content"]})
    return merged
