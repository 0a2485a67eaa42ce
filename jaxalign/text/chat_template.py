"""A tokenizer's chat template: which one of several, the date it writes, and how it is rendered."""

import atexit
import contextlib
import datetime
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.host.errors import InputError

PATIENCE = 60
"""Seconds until a rendering process that says nothing is given up: a loaded machine is slow."""


def day_of(date: str | None) -> str:
    """A date as ISO has it; by default today's.

    Raises:
      InputError: it is no date.
    """
    try:
        day = datetime.date.fromisoformat(date) if date is not None else datetime.date.today()
    except ValueError:
        raise InputError(f"template_date: {date!r} is no date; write it as YYYY-MM-DD") from None
    return day.isoformat()


def fix_template(tokenizer: Any, name: str | None, date: str) -> None:
    """Chooses the chat template of a tokenizer that has several, and the date that it writes.

    The others stay, for an export. Without a default one and without a name, `render_chats` asks
    for one. The tokenizer gets a `template_name`, or None, and a `template_date`, ISO: what the
    template takes for today, also behind midnight.

    Raises:
      InputError: no template of that name.
    """
    tokenizer.template_date, tokenizer.template_name = date, name
    found = tokenizer.chat_template
    several = found if isinstance(found, Mapping) else {"default": found}
    if name is not None and name not in several:
        there = f"it has {', '.join(map(str, several))}"
        raise InputError(
            f"{named(tokenizer)}: no chat template {name!r}; {there}: correct --chat-template or "
            "leave it out"
        )


def template_date(tokenizer: Any) -> str | None:
    """The date, ISO, that its chat template takes for today; None where the template asks for none.

    It is that of `run_date`.
    """
    return run_date(tokenizer) if "strftime_now" in str(_chosen(tokenizer)) else None


def _chosen(tokenizer: Any) -> Any:
    found = tokenizer.chat_template
    if not isinstance(found, Mapping):
        return found
    return found.get(getattr(tokenizer, "template_name", None) or "default", found)


def run_date(tokenizer: Any) -> str:
    """The date, ISO, that `fix_template` fixed, else today's."""
    return getattr(tokenizer, "template_date", day_of(None))


def render_chats(
    tokenizer: Any, chats: Sequence[Sequence[Mapping[str, Any]]], *, finished: bool
) -> list[dict[str, str]]:
    """Renders chats by the tokenizer's chat template, in a process with limits.

    As transformers' `apply_chat_template` does, without tools; but the date is `template_date`, and
    a template that loops or grows is stopped (`jaxalign.text.render_server`). A text is finished
    with the last message, or ends with what opens a reply. What was rendered is remembered.

    Returns:
      for each `text`, or where the template fails `error`, why.

    Raises:
      InputError: there is no chat template, several and none chosen, or what it is can't be
        rendered within the limits.
    """
    template = _chosen(tokenizer)
    if not template:
        raise InputError("the tokenizer has no chat template: use an instruct model")
    if not isinstance(template, str | Mapping):
        raise InputError(f"{named(tokenizer)}: its chat template is no text: use another model")
    if not isinstance(template, str):
        raise InputError(
            f"{named(tokenizer)}: has the chat templates {', '.join(map(str, template))} and no "
            "default: choose one by --chat-template"
        )
    context = dict(tokenizer.special_tokens_map) | {"add_generation_prompt": not finished}
    date = template_date(tokenizer) or "1970-01-01"
    request = {"template": template, "date": date, "chats": chats, "context": context}
    answer = _ask(json.dumps(request))
    if isinstance(answer, dict):
        raise InputError(
            f"{named(tokenizer)}: its chat template can't be rendered ({answer['error']}): use "
            "another model"
        )
    return list(answer)


def named(tokenizer: Any) -> str:
    """The folder or file that a tokenizer is from, for messages."""
    return getattr(tokenizer, "name_or_path", "") or "the tokenizer"


_LOCK = threading.Lock()


@functools.lru_cache(maxsize=1)
def _server(process: int) -> Any:
    """This process's renderer, which ends with it; a forked process has another."""
    path = Path(__file__).with_name("render_server.py")
    server = subprocess.Popen(
        [sys.executable, "-P", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # a group that ends together with what it renders
    )
    atexit.register(_end, server)
    return server


def _kill(server: Any) -> None:
    if server.returncode is None:  # else its number may be another's by now
        os.killpg(server.pid, signal.SIGKILL)


def _end(server: Any) -> None:
    _kill(server)  # a forked process may hold its pipes open
    server.wait()
    for pipe in (server.stdin, server.stdout):
        with contextlib.suppress(OSError):
            pipe.close()


@functools.lru_cache(maxsize=256)
def _ask(request: str) -> Any:
    """The renderer's answer to a request, both JSON."""
    with _LOCK:
        server = _server(os.getpid())
        timer = threading.Timer(PATIENCE, _kill, (server,))
        timer.start()
        try:
            server.stdin.write(request + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())
        except BaseException as error:  # also Ctrl-C: its answer must not be the next one's
            _end(server)
            _server.cache_clear()
            if not isinstance(error, OSError | ValueError):
                raise
            raise InputError(
                f"the process that renders chat templates ended, or took {PATIENCE} seconds: start "
                "again on a machine with less to do"
            ) from None
        finally:
            timer.cancel()
