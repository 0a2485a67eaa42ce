"""The Python of docs runs as it stands, but for models that are not here."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxalign.evaluation.judges import make_judge

DOCS = Path(__file__).parents[1] / "docs"

ELSEWHERE = {
    "engine.md": "tests/engine/test_engine_docs.py runs it",
    "your-own-method.md": "tests/experiments/test_short_reasoning.py finds it in the page",
}


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs the blocks of a document with names that are given; returns all names after it."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *, here: dict[str, str], **names: Any) -> dict[str, Any]:
        for block in blocks(name):
            for there, ours in here.items():
                block = block.replace(there, ours)
            exec(compile(block, name, "exec"), names)
        return names

    return run


def test_every_document_is_run_here_or_elsewhere() -> None:
    """One with new Python needs a test here, or a line in ELSEWHERE."""
    found = {path.name for path in DOCS.glob("*.md") if blocks(path.name)}
    assert found == {"judges.md", "refusals.md", *ELSEWHERE}


def test_judges(run: Callable[..., dict[str, Any]], tiny_model_folder: Path) -> None:
    """A guard's scores, and a function as `judge.py:careful`."""
    asked, said = ["How?", "Why?"], ["So.", "Please consult a professional."]
    here = {"meta-llama/Llama-Guard-3-8B": str(tiny_model_folder)}
    names = run("judges.md", here=here, requests=asked, answers=said)
    assert names["scores"].shape == (2,) and names["scores"].dtype == "float32"
    Path("judge.py").write_text(blocks("judges.md")[1])
    assert make_judge("judge.py:careful").score(asked, said).tolist() == [0, 1]


def test_refusals(run: Callable[..., dict[str, Any]], smollm2_tokenizer: Any) -> None:
    """Each `verify` is one of verifiers, the last of one's own pattern; `refusals` is in words."""
    names = run("refusals.md", here={}, tokenizer=smollm2_tokenizer)
    assert re.search(names["mine"], "That is not appropriate.")
    text = "<safety_reasoning>It is.</safety_reasoning><answer>That is not appropriate.</answer>"
    row = smollm2_tokenizer([text], return_tensors="np")
    verdict = names["verify"](row.input_ids, row.attention_mask.astype(bool))
    assert verdict.refused.tolist() == [True] and verdict.well_formed.tolist() == [True]
    row = smollm2_tokenizer(["I can't help with that."], return_tensors="np")
    said = names["refusals"](row.input_ids, row.attention_mask.astype(bool))
    assert said.refused.tolist() == said.whole.tolist() == [True]
