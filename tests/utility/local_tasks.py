"""Tasks of `lm-eval` on local files: sums in words in GSM8K's form, and choices."""

import json
from pathlib import Path

import yaml


def sums(count: int) -> list[dict[str, str]]:
    """Sums in words, of which a small model solves some and not others."""
    names = ("Ann", "Ben", "Cleo", "Dan", "Eva")
    things = ("apples", "books", "coins", "marbles", "eggs", "stamps", "cups")
    rows = []
    for index in range(count):
        a, b = 2 + index % 9, 3 + (index * 7) % (4 if index % 2 else 40)
        name, thing = names[index % 5], things[index % 7]
        rows.append(
            {
                "question": f"{name} has {a} {thing} and gets {b} more. How many {thing} does "
                f"{name} have now?",
                "answer": f"{a} + {b} = {a + b}\n#### {a + b}",
            }
        )
    return rows


def write_sums(folder: Path, rows: list[dict[str, str]], **generation: object) -> None:
    """The task `local_sums`: the questions as in lm-eval's gsm8k, without worked examples."""
    _write_task(
        folder,
        "local_sums",
        rows,
        output_type="generate_until",
        doc_to_text="Question: {{question}}\nAnswer:",
        doc_to_target="{{answer.split('#### ')[-1]}}",
        generation_kwargs={"until": ["Question:", "\n\n"], "do_sample": False, **generation},
        filter_list=[
            {
                "name": "flexible-extract",
                "filter": [
                    {
                        "function": "regex",
                        "group_select": -1,
                        "regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)",
                    },
                    {"function": "take_first"},
                ],
            }
        ],
        metric_list=[
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "regexes_to_ignore": [",", "\\$", "\\.$"],
            }
        ],
    )


def write_choices(folder: Path) -> None:
    """The task `local_choices`: questions with three or four answers each, the first is right."""
    rows = [
        {"question": "The capital of France is", "choices": ["Paris", "London", "Rome", "Oslo"]},
        {"question": "The sky on a clear day is", "choices": ["blue", "made of cheese", "green"]},
        {"question": "Two and two make", "choices": ["four", "a very large number", "five"]},
        {"question": "Water freezes at a temperature of", "choices": ["0°C", "90°C", "50°C", "7"]},
    ]
    _write_task(
        folder,
        "local_choices",
        rows,
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_choice="choices",
        doc_to_target=0,
        metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
    )


def write_texts(folder: Path, texts: list[str]) -> None:
    """The task `local_texts`: how likely whole texts are."""
    _write_task(
        folder,
        "local_texts",
        [{"text": text} for text in texts],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "word_perplexity"}],
    )


def _write_task(folder: Path, name: str, rows: list, **config: object) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        **config,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
