"""Chat templates: what transformers makes of them, on the date that was fixed, within limits."""

import copy
import datetime
import os

import pytest
from chat_templates import LLAMA_3, MISTRAL_1, MISTRAL_3, SMOLLM_3

from jaxalign.host.errors import InputError
from jaxalign.text import chat_template
from jaxalign.text.chat_template import day_of, fix_template, render_chats, template_date

ASK = [{"role": "user", "content": " Why <b> & “so”? "}]
TALK = [*ASK, {"role": "assistant", "content": "\nBecause. "}, {"role": "user", "content": "Oh?"}]
SYSTEM = [{"role": "system", "content": "Be brief.\n"}, *TALK]


@pytest.fixture
def tokenizer(smollm2_tokenizer):
    return copy.deepcopy(smollm2_tokenizer)


def render(tokenizer, template, *chats, finished=False):
    tokenizer.chat_template = template
    return render_chats(tokenizer, chats, finished=finished)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("chat", [ASK, TALK, SYSTEM], ids=["ask", "talk", "system"])
@pytest.mark.parametrize(
    "template",
    [None, LLAMA_3, SMOLLM_3, MISTRAL_1, MISTRAL_3],
    ids=["smollm2", "llama 3", "smollm 3", "mistral 1", "mistral 3"],
)
def test_equals_transformers_on_the_same_date(tokenizer, template, chat, finished):
    tokenizer.chat_template = template or tokenizer.chat_template
    fix_template(tokenizer, None, "2025-03-09")
    (found,) = render_chats(tokenizer, [chat], finished=finished)
    if template == MISTRAL_1 and chat is SYSTEM:
        assert found["error"].startswith("Conversation roles must alternate")
        return
    assert found["text"] == tokenizer.apply_chat_template(
        chat,
        tokenize=False,
        add_generation_prompt=not finished,
        strftime_now=datetime.datetime(2025, 3, 9).strftime,
    )
    assert ("09 Mar" in found["text"]) == (template in (LLAMA_3, SMOLLM_3))


def test_the_date_is_todays_until_it_is_fixed(tokenizer):
    assert template_date(tokenizer) is None  # SmolLM2's writes none
    tokenizer.chat_template = LLAMA_3
    assert template_date(tokenizer) == day_of(None) == datetime.date.today().isoformat()
    fix_template(tokenizer, None, "2025-03-09")
    assert template_date(copy.deepcopy(tokenizer)) == "2025-03-09"
    with pytest.raises(InputError, match="template_date: 'March' is no date; write it as YYYY-"):
        day_of("March")


def test_one_of_several_templates(tokenizer):
    named = {"default": "a", "rag": "b"}
    for name, text in ((None, "a"), ("rag", "b")):
        tokenizer.chat_template = named
        fix_template(tokenizer, name, "2025-03-09")
        assert render_chats(tokenizer, [ASK], finished=False) == [{"text": text}]
    assert tokenizer.chat_template == named  # an export has all of them
    with pytest.raises(InputError, match="no chat template 'x'; it has default, rag: correct"):
        fix_template(tokenizer, "x", "2025-03-09")
    tokenizer.chat_template = {"rag": "b", "tool_use": "c"}
    fix_template(tokenizer, None, "2025-03-09")
    with pytest.raises(InputError, match="templates rag, tool_use and no default.*chat-template$"):
        render_chats(tokenizer, [ASK], finished=False)


HOSTILE = {
    "range": ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    "macro": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth"),
    "huge": ("{{ 'x' * 10**10 }}", "takes more than 256 MB of memory"),
    "doubling": (
        "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}"
        "{% endfor %}",
        "takes more than 256 MB of memory",
    ),
    "width": ("{{ '%1000000000d' % 1 }}", "takes more than 256 MB of memory"),
    "long": ("{{ 'x' * 2 ** 21 }}", "writes more than 1048576 characters"),
    "zero": ("{{ 1 // 0 }}", "ZeroDivisionError"),
    "slice": ("{{ messages[7:9][0]['content'] }}", "has no element 0"),
    "class": ("{{ ''.__class__.__mro__ }}", "is unsafe"),
    "change": ("{{ messages.append(1) }}", "is unsafe"),
    "file": ("{% include '/etc/passwd' %}", "no loader"),
    "surrogate": ("{{ '\\ud800' }}", "surrogates not allowed"),
    "own words": ("{{ raise_exception('line one\n line two ' + 'x' * 999) }}", "line one line two"),
}


@pytest.mark.parametrize(("template", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_fails_in_a_line(tokenizer, template, message):
    (found,) = render(tokenizer, template, ASK)
    assert message in found["error"] and "\n" not in found["error"] and len(found["error"]) < 200


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (f"{{% for i in {'range(99999)'} %}}" * 2 + "{% endfor %}" * 2, "takes more than 5 s"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "RecursionError"),
        ("{% if %}", "TemplateSyntaxError"),
    ],
    ids=["loops", "nested", "syntax"],
)
def test_a_template_that_is_none_is_an_input_error(tokenizer, template, message):
    with pytest.raises(InputError, match=f"chat template can't be rendered .*{message}") as error:
        render(tokenizer, template, ASK)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    assert render(tokenizer, "{{ bos_token }}!", ASK) == [{"text": "<|im_start|>!"}]


def test_a_renderer_that_ends_is_started_again(tokenizer, monkeypatch):
    """And what interrupts one request does not leave its answer for the next."""
    server = chat_template._server(os.getpid())
    server.kill()
    with pytest.raises(InputError, match="the process that renders chat templates ended"):
        render(tokenizer, "first", ASK)
    assert render(tokenizer, "first", ASK) == [{"text": "first"}]

    def interrupted(text):
        raise KeyboardInterrupt

    monkeypatch.setattr(chat_template.json, "loads", interrupted)
    with pytest.raises(KeyboardInterrupt):
        render(tokenizer, "second", ASK)
    monkeypatch.undo()
    assert render(tokenizer, "third", ASK) == [{"text": "third"}]


def test_a_renderer_that_hangs_is_given_up(tokenizer, monkeypatch):
    monkeypatch.setattr(chat_template, "PATIENCE", 0.1)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"
    with pytest.raises(InputError, match="ended, or took 0.1 seconds"):
        render(tokenizer, loops, ASK)
