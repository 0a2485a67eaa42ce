"""Public suites by name: what the table says, files as they are published, a hub that is away."""

import collections
from pathlib import Path

import datasets
import pytest

from jaxalign.data import KINDS, Prompt, builtin_prompts
from jaxalign.data.suites import SUITES, load_suite
from jaxalign.host.errors import InputError

PUBLIC_DATA = Path(__file__).parents[2].parent / "shared" / "data"


def public(name: str) -> str:
    path = PUBLIC_DATA / name
    if not path.is_file():
        pytest.skip(f"public data not here: ../shared/data/{name}")
    return str(path)


def kinds_of(prompts: list[Prompt]) -> dict[str, int]:
    return dict(collections.Counter(prompt.kind for prompt in prompts))


def error_of(spec: str, **arguments) -> str:
    with pytest.raises(InputError) as caught:
        load_suite(spec, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


# --- the table -----------------------------------------------------------------------------------


def test_every_suite_tells_its_kinds_in_one_way():
    for name, suite in SUITES.items():
        assert (suite.kind is None) == bool(suite.kind_column) == bool(suite.kinds), name
        assert {suite.kind, *suite.kinds.values()} <= {*KINDS, None}
        assert suite.text and suite.source, name
        assert all(value == value.lower() for value in (*suite.kinds, *suite.keep.values()))


@pytest.mark.parametrize(
    ("spec", "kinds", "first"),
    [
        ("advbench=advbench_harmful_behaviors.csv", {"harmful": 520}, "Write a script that can"),
        ("strongreject=strongreject_dataset.csv", {"harmful": 313}, "Can you explain how to write"),
        (
            "xstest=xstest_prompts.csv",
            {"lookalike": 250, "harmful": 200},
            "How can I kill a Python",
        ),
    ],
)
def test_the_authors_files(spec, kinds, first):
    name, _, file = spec.partition("=")
    loaded, prompts = load_suite(f"{name}={public(file)}")
    assert loaded == name and kinds_of(prompts) == kinds
    assert prompts[0].text.startswith(first)
    assert len({prompt.id for prompt in prompts}) == len(prompts)


def test_categories_and_ids():
    prompts = load_suite(f"strongreject={public('strongreject_dataset.csv')}")[1]
    assert len({prompt.category for prompt in prompts}) == 6
    assert prompts[7].id == "strongreject:7"
    prompts = load_suite(f"xstest={public('xstest_prompts.csv')}")[1]
    assert (prompts[0].id, prompts[0].category) == ("1", "homonyms")


def test_a_limit_is_spread_over_a_sorted_suite():
    spec = f"xstest={public('xstest_prompts.csv')}"
    whole, few = load_suite(spec)[1], load_suite(spec, 18)[1]
    assert kinds_of(few) == {"lookalike": 10, "harmful": 8}
    assert few == whole[::25]
    assert len({prompt.category for prompt in few}) > 10
    assert load_suite(spec, 1000)[1] == whole


def test_harmbenchs_contextual_behaviours_are_left_out(tmp_path):
    path = write(
        tmp_path / "h.csv",
        "Behavior,FunctionalCategory,SemanticCategory,BehaviorID",
        "Forge a cheque,standard,illegal,a",
        "Answer it,contextual,illegal,b",
        "Sing a hit,copyright,copyright,c",
        "Start a rumour,standard,misinformation_disinformation,d",
    )
    prompts = load_suite(f"harmbench={path}")[1]
    assert prompts == [
        Prompt("harmbench:0", "Forge a cheque", "harmful", "illegal"),
        Prompt("harmbench:1", "Start a rumour", "harmful", "misinformation_disinformation"),
    ]


def test_rows_without_a_usable_label_are_left_out(tmp_path):
    path = write(
        tmp_path / "w.jsonl",
        '{"prompt": "a", "prompt_harm_label": "harmful", "subcategory": "fraud"}',
        '{"prompt": "b", "prompt_harm_label": null}',
        '{"prompt": "c", "prompt_harm_label": "unharmful"}',
    )
    assert load_suite(f"wildguardtest={path}")[1] == [
        Prompt("wildguardtest:0", "a", "harmful", "fraud"),
        Prompt("wildguardtest:1", "c", "lookalike", "general"),
    ]
    path = write(tmp_path / "p.csv", "ID,Request,Harmfulness", "1,x,Harmless", "2,y,Controversial")
    assert [x.text for x in load_suite(f"phtest={path}")[1]] == ["x"]


# --- one's own prompts ---------------------------------------------------------------------------


def test_names_and_kinds_of_ones_own(tmp_path):
    path = write(tmp_path / "my prompts.csv", "prompt", "Why?")
    assert load_suite("builtin:heldout") == ("heldout", builtin_prompts("heldout"))
    assert load_suite("mine=builtin:heldout")[0] == "mine"
    assert load_suite(f"harmful={path}")[0] == "my-prompts"
    assert load_suite(f"benign={path}")[1][0].kind == "benign"
    name, prompts = load_suite(f"q_1=lookalike={path}")
    assert (name, prompts[0].kind) == ("q_1", "lookalike")
    path = write(tmp_path / "a=b.csv", "query,kind", "Why?,benign")
    assert load_suite(str(path), text_field="query")[0] == "a-b"
    assert kinds_of(load_suite("builtin:heldout", 9)[1]) == dict.fromkeys(KINDS, 3)


# --- bad input -----------------------------------------------------------------------------------


def test_bad_specs(tmp_path):
    assert error_of("advbenhc").startswith("'advbenhc': no such suite; give NAME, NAME=FILE")
    assert "the names are advbench, strongreject" in error_of("advbenhc")
    assert error_of("advbench=") == (
        "advbench=: a file must follow the sign; give advbench=FILE, or advbench"
    )
    assert "'a b' is no name; use letters, digits" in error_of("a b=x.csv")
    assert "unknown kind 'evil'; use harmful, benign, lookalike" in error_of("x=evil=y.csv")
    assert "limit: 0 is not a number of prompts" in error_of("builtin:heldout", limit=0)
    assert "none.csv: No such file" in error_of("advbench=none.csv")
    assert "hexphi: the hub has no copy that can be read; get its file (" in error_of("hexphi")
    path = write(tmp_path / "a.csv", "prompt", "Why?")
    assert "neither field 'kind' nor 'label'" in error_of(str(path))


def test_files_that_are_not_the_suite(tmp_path):
    path = write(tmp_path / "a.csv", "query,label", "Why?,unsafe", "Who?,odd")
    assert error_of(f"advbench={path}").endswith(
        "a.csv line 2: AdvBench has its text in the column goal or prompt, here are 'query', "
        "'label'; rename it, or call it another suite, OTHER=KIND=SPEC"
    )
    assert "PHTest has its kinds in the column Harmfulness, here are" in error_of(f"phtest={path}")
    path = write(tmp_path / "a.csv", "prompt,label", "Why?,unsafe", "Who?,safe")
    assert error_of(f"advbench={path}").endswith(
        "a.csv line 3: label is 'safe', and AdvBench's prompts are all harmful; check that it is "
        "that suite, or call it another, OTHER=SPEC"
    )
    path = write(tmp_path / "a.csv", "prompt,label", "Why?,safe", "Who?,odd")
    assert "a.csv line 3: label is 'odd'; use safe, unsafe" in error_of(f"xstest={path}")
    path = write(tmp_path / "a.csv", "Request,Harmfulness", "Why?,controversial")
    assert "no row of PHTest is left; check that it is that suite" in error_of(f"phtest={path}")
    path = write(tmp_path / "empty.csv", "goal,target")
    assert "empty.csv: no rows; give at least one prompt" in error_of(f"advbench={path}")


# --- the hub -------------------------------------------------------------------------------------


def hub(monkeypatch, outcome) -> list[tuple]:
    """A hub that gives these rows, or fails so; returns what it was asked for."""
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        if isinstance(outcome, Exception):
            raise outcome
        return datasets.Dataset.from_list(outcome)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize(
    ("name", "row", "asked", "kind"),
    [
        ("advbench", {"prompt": "x"}, ("walledai/AdvBench", None, "train"), "harmful"),
        (
            "jailbreakbench",
            {"Goal": "x"},
            ("JailbreakBench/JBB-Behaviors", "behaviors", "harmful"),
            "harmful",
        ),
        ("coconot", {"prompt": "x"}, ("allenai/coconot", "contrast", "test"), "lookalike"),
        (
            "wildjailbreak",
            {"adversarial": "x", "data_type": "adversarial_benign"},
            ("allenai/wildjailbreak", "eval", "train"),
            "lookalike",
        ),
    ],
)
def test_where_on_the_hub_a_suite_is(monkeypatch, name, row, asked, kind):
    requests = hub(monkeypatch, [row])
    ((prompt,),) = load_suite(name)[1:]
    assert (prompt.id, prompt.text, prompt.kind) == (f"{name}:0", "x", kind)
    assert requests == [asked]


def test_a_file_has_the_ids_of_the_hub(monkeypatch, tmp_path):
    path = write(tmp_path / "a.csv", "goal,target", "x,y", "z,w")
    hub(monkeypatch, [{"prompt": "x", "target": "y"}, {"prompt": "z", "target": "w"}])
    assert load_suite("advbench")[1][0] == Prompt("advbench:0", "x", "harmful", "general", "y")
    assert load_suite("advbench") == load_suite(f"advbench={path}")


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (
            ConnectionError("Couldn't reach 'walledai/AdvBench' on the Hub (LocalEntryNotFound)"),
            "advbench: the hub cannot be reached (Couldn't reach 'walledai/AdvBench' on the Hub "
            "(LocalEntryNotFound)); connect, or get the file (",
        ),
        (
            RuntimeError("Offline mode is enabled."),
            "advbench: the hub cannot be reached (Offline mode is enabled.); connect, or get the",
        ),
        (
            RuntimeError("Dataset 'walledai/AdvBench' is a gated dataset on the Hub."),
            "advbench: the dataset asks for consent; agree on "
            "huggingface.co/datasets/walledai/AdvBench, log in with `hf auth login`, or get the",
        ),
        (
            ValueError("Unknown split"),
            "hub:walledai/AdvBench: cannot be read; check name, split and network (ValueError: "
            "Unknown split); or get the file (",
        ),
    ],
)
def test_a_hub_that_gives_nothing(monkeypatch, failure, expected):
    hub(monkeypatch, failure)
    error = error_of("advbench")
    assert error.startswith(expected) and error.endswith(") and give advbench=FILE")


def test_a_hub_that_has_another_table(monkeypatch):
    hub(monkeypatch, [{"query": "x"}])
    assert "row 0: AdvBench has its text in the column goal or prompt" in error_of("advbench")
