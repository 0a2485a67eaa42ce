"""A run over midnight: its chat template keeps the date on which it began; config.json has it."""

import datetime
import json

import pytest
from characters import POLICY, character_tokenizer
from chat_templates import LLAMA_3
from tiny_model import random_params

from jaxalign.data.prompts import Prompt
from jaxalign.data.templates import bare_messages, encode_chat
from jaxalign.host.errors import InputError
from jaxalign.models import Transformer, save_pretrained
from jaxalign.runs.choices import change
from jaxalign.runs.experiment import Experiment
from jaxalign.runs.loop import Interruption
from jaxalign.runs.recipe import Recipe
from jaxalign.runs.settings import Settings
from jaxalign.runs.start_model import load_start


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Begins a run on a day, or resumes it; returns what opens its prompts, and its date."""

    def run(day, template=LLAMA_3, **settings):
        folder = tmp_path / "model"
        if not folder.exists():
            tokenizer = character_tokenizer(template=template)
            save_pretrained(folder, Transformer(POLICY), random_params(POLICY), tokenizer)
        today = type("Day", (datetime.date,), {"today": classmethod(lambda _: day)})
        monkeypatch.setattr(datetime, "date", today)
        given = change(
            Settings(run=tmp_path / "run"), model=str(folder), dtype="float32", **settings
        )
        model, _, tokenizer = load_start(given)
        Experiment(
            given,
            Recipe(bare_messages),
            model=model,
            tokenizer=tokenizer,
            prompts=[Prompt("1", "Hi?", "benign", "general")],
            heldout=[],
            validation=[],
            interruption=Interruption(),
            begun=0.0,
        )
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        head, tail = encode_chat(tokenizer, bare_messages("Hi?"))
        return tokenizer.decode(head + tail), config["template_date"]

    return run


MONDAY, TUESDAY = datetime.date(2026, 3, 9), datetime.date(2026, 3, 10)


def test_a_resumed_run_keeps_its_date(begin):
    opening, date = begin(MONDAY)
    assert date == "2026-03-09" and "Today Date: 09 Mar 2026" in opening
    assert begin(TUESDAY, resume=True) == (opening, date)
    with pytest.raises(InputError, match="template_date was '2026-03-09' and is now '2026-03-10'"):
        begin(TUESDAY, resume=True, template_date="2026-03-10")
    assert "Today Date: 01 Jan 2020" in begin(TUESDAY, template_date="2020-01-01")[0]


def test_a_template_without_a_date_leaves_the_run_one_for_its_reward_model(begin):
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert begin(MONDAY, template=plain) == ("Hi?", "2026-03-09")
    assert begin(TUESDAY, resume=True) == ("Hi?", "2026-03-09")
