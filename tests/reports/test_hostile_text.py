"""Pages of text that would break them: it stands there as text, and nothing else comes of it.

Every page is written twice, of hostile text and of plain text. Both have the same tags, and in
Chromium, where there is one, no script runs, nothing is hidden, and the page stays as wide.
"""

import json
import re
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import find_browser, measure, printed_dom
from hostile_text import MEGABYTE, NAME, UNSHOWN, hostile
from written_evaluation import SETTINGS, write_evaluation

from jaxalign.data.prompts import Prompt, Turn
from jaxalign.host.metrics import MetricsWriter, SamplesWriter
from jaxalign.reports.comparison import compare, write_comparison
from jaxalign.reports.evaluation_folder import read_evaluation
from jaxalign.reports.evaluation_page import write_eval_report
from jaxalign.reports.run_page import write_report
from jaxalign.reports.seeds_page import write_seeds_report

Text = Callable[..., str]
"""`(place, text)`: what stands in a place, hostile or not."""

NAMES = ("evaluation", "comparison", "run", "seeds")


def completion(text: Text, place: str, long: bool) -> str:
    """In the format, so that both parts are shown, with words of its own, so that it is no echo."""
    parts = (text(f"{part} of {place}", *[MEGABYTE] * long) for part in ("reasoning", "answer"))
    form = "<safety_reasoning>{}</safety_reasoning>\n<answer>Kettles boil water. {}</answer>"
    return form.format(*parts)


def evaluation(folder: Path, text: Text, *, suite: str = "suite", other: str = "") -> Path:
    """Prompts of each kind, the last with a conversation; one id has another text by `other`."""
    prompts = [
        Prompt(text("id"), text("prompt"), "harmful", text("category")),
        Prompt("1", text("prompt", MEGABYTE), "harmful", text("category", MEGABYTE)),
        Prompt(text("id", MEGABYTE), f"{text('prompt')}{other}", "benign", "general"),
        Prompt("3", text("prompt"), "lookalike", "general", (Turn("user", text("turn")),)),
    ]
    answers = [completion(text, x.kind, long=x.id == "1") for x in prompts]
    if other:
        answers[0] = "I'm sorry."
    write_evaluation(folder, prompts, answers, suite=suite)
    path = folder / "results.json"
    results = json.loads(path.read_text())
    results |= {"model": text("model"), "hardware": text("hardware"), "date": text("date")}
    settings = SETTINGS | {text("name of a setting"): text("setting", MEGABYTE)}
    results["settings"] = settings | {"dtype": text("dtype" + other)}
    path.write_text(json.dumps(results))
    return folder


def run(folder: Path, text: Text) -> Path:
    """A run folder."""
    evaluation(folder / "before", text, suite="heldout")
    evaluation(folder / "after", text, suite="heldout", other="!")
    with MetricsWriter(folder) as metrics, SamplesWriter(folder) as samples:
        metrics.write(0, {"reward": 1.0, text("metric"): 2.0})
        sample = {"prompt": text("prompt"), "kind": text("kind"), "reward": text("reward")}
        samples.write(0, [sample | {"completion": completion(text, "sample", long=True)}])
    config = {text("key"): text("value", MEGABYTE), "nested": {text("key"): [text("item")]}}
    (folder / "config.json").write_text(json.dumps(config))
    summary = {"hardware": text("hardware"), "date": text("date")}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def seeds(folder: Path, text: Text) -> Path:
    """Runs of two seeds, as far as their page reads them."""
    for seed in (0, 1):
        after = {text("figure"): 0.5, "intervals": {}}
        content = {"before": None, "after": after, "hardware": text("hardware")}
        (folder / f"seed-{seed}").mkdir(parents=True)
        (folder / f"seed-{seed}" / "summary.json").write_text(json.dumps(content))
    return folder


def write_pages(folder: Path, text: Text, name: str) -> dict[str, Path]:
    """All pages, of folders and a suite with a name that may be hostile too."""
    first = evaluation(folder / name / "first", text, suite=name)
    second = evaluation(folder / name / "second", text, suite=name, other="!")
    sides = [read_evaluation(x) for x in (first, second)]
    out = folder / "comparison"
    return {
        "evaluation": write_eval_report(first),
        "comparison": write_comparison(out, sides[0], sides[1:], [compare(*sides)]),
        "run": write_report(run(folder / f"run {name}", text)),
        "seeds": write_seeds_report(seeds(folder / f"seeds {name}", text)),
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_pages(tmp_path_factory.mktemp("hostile"), hostile, NAME)


@pytest.fixture(scope="module")
def plain_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    def plain(place: str, text: str = "") -> str:
        return f"{text[:9]} and no stub, but words as above, end of {place}."

    return write_pages(tmp_path_factory.mktemp("plain"), plain, "plain")


class Tags(HTMLParser):
    """The tags of a page with their attributes, but for pictures and verdicts; and its text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[Any] = []
        self.text = ""
        self.feed(page.read_text())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        alike = r"(?<=^data:image/png;base64,).*|(?<=^badge) .*"
        self.tags.append((tag, [(name, re.sub(alike, "", value or "")) for name, value in attrs]))

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", NAMES)
def test_hostile_text_makes_no_tag(
    name: str, pages: dict[str, Path], plain_pages: dict[str, Path]
) -> None:
    found, plain = Tags(pages[name]), Tags(plain_pages[name])
    assert found.tags == plain.tags and found.tags[-1] == "html"
    assert not {tag for tag, _ in (x for x in found.tags if len(x) == 2)} & {"script", "a", "svg"}
    ends, expected = (re.findall(r"end of [a-z! ]{1,40}\.", x.text) for x in (found, plain))
    assert ends == expected
    assert "<script>window.hit=1;document.title='hit'</script>" in found.text
    assert "{{7*7}}" in found.text and "]]>&lt;&#60;" in found.text
    assert not set(found.text) & set(UNSHOWN)


def title_of(html: str) -> str:
    return unescape(html.partition("<title>")[2].partition("</title>")[0])


needs_browser = pytest.mark.skipif(
    find_browser() is None, reason="no chromium, chromium-browser or google-chrome on PATH"
)


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("name", NAMES)
def test_chromium_shows_hostile_text_as_text(
    name: str, pages: dict[str, Path], plain_pages: dict[str, Path], tmp_path: Path
) -> None:
    """Even without the content policy, which would stop what slips by."""
    dom = printed_dom(pages[name])
    assert title_of(dom) == title_of(pages[name].read_text())
    found = measure(pages[name], tmp_path / "hostile.html")
    plain = measure(plain_pages[name], tmp_path / "plain.html")
    assert found["hit"] is None and found["title"].endswith("jaxalign")
    assert found["width"] == plain["width"]
    assert found["last"] > 0 and not found["turned"]
