"""A process that renders chat templates within limits: they come with a model, from anybody.

It is started by its path and imports nothing of jaxalign, so it is up in a tenth of a second. It
reads a request and writes an answer, each a line of JSON, until its input ends; what becomes of a
template is as in transformers' `apply_chat_template`, but for the date.
"""

import contextlib
import datetime
import functools
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS, MEGABYTES = 5, 256
"""What all chats of a request may take together: of the processor, and of memory.

Filling the memory alone takes a second on a loaded machine."""

LONGEST = 1 << 20
"""Characters of a rendered chat."""


class _Generation(Extension):
    """`{% generation %}` marks what the model says; here it means nothing."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)  # jinja's own escapes HTML


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _compile(template: str, date: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    del environment.filters["random"], environment.globals["lipsum"]  # a run must come out again
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = datetime.datetime.fromisoformat(date).strftime
    return environment.from_string(template)


def _attempt(make: Callable[[], Any]) -> Any:
    """What it makes, or an `error` in a line."""
    try:
        return make()
    except MemoryError:
        return {"error": f"takes more than {MEGABYTES} MB of memory"}
    except Exception as error:  # whatever a template can do wrong
        said = f"{error}" if type(error) is jinja2.TemplateError else f"{error!r}"
        return {"error": " ".join(said[:160].split())}


def _render(template: jinja2.Template, messages: Any, context: dict[str, Any]) -> dict[str, str]:
    text = template.render(messages=messages, tools=None, documents=None, **context)
    if len(text) > LONGEST:
        return {"error": f"writes more than {LONGEST} characters"}
    text.encode()  # half a surrogate pair is no text
    return {"text": text}


def _answer(template: str, date: str, chats: list[Any], context: dict[str, Any]) -> Any:
    """For each chat its `text` or an `error`; an `error` alone where the template is none."""

    def render_all() -> list[Any]:
        compiled = _compile(template, date)
        return [_attempt(functools.partial(_render, compiled, chat, context)) for chat in chats]

    return _attempt(render_all)


def serve() -> None:
    """Answers request after request, each in a process of its own that may be killed."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            with contextlib.suppress(ValueError):  # macOS has no such limit
                resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES << 20, MEGABYTES << 20))
            print(json.dumps(_answer(**json.loads(line))), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            slow = os.waitstatus_to_exitcode(status) in (-signal.SIGXCPU, -signal.SIGKILL)
            why = f"takes more than {SECONDS} s" if slow else "broke the process it ran in"
            print(json.dumps({"error": why}), flush=True)


if __name__ == "__main__":
    serve()
