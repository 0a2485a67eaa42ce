"""The attacks' script: every table and picture, on a tiny model, and again from its files."""

from pathlib import Path

import pytest

from experiments.benchmarks.attacks import Settings, main, refused


def test_an_answer_is_judged_without_its_reasoning() -> None:
    assert refused({"completion": "I'm sorry, but"})
    assert not refused({"completion": "I'm sorry. <answer>Sure, here is"})


@pytest.mark.slow
def test_tables_and_pictures(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(
        tmp_path, str(tiny_model_folder), each=1, samples=2, max_new_tokens=4, batch_size=4
    )
    main(settings)
    first = capsys.readouterr().out
    assert "| prefill-answer-20 | 1 |" in first and "| none | 2 |" in first
    assert first.rstrip().endswith("3 answers")
    for name in ("safety_at_k", "key_words"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    main(settings)
    tables = [out.rpartition("\n\n")[0] for out in (first, capsys.readouterr().out)]
    assert tables[0] == tables[1], "all but the times"
