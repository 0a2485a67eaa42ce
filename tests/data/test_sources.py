"""One argument string names the prompts, and whatever is wrong with them is said in one line."""

import collections
import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data import Prompt, Request, builtin_prompts, load_prompts, load_requests
from jaxalign.data.prompts import Turn
from jaxalign.data.suites import load_suite
from jaxalign.host.errors import InputError

PUBLIC_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def write(path: Path, text: str) -> str:
    path.write_bytes(text.encode("utf-8"))
    return str(path)


def error_of(spec: str, **arguments) -> str:
    """The message of the InputError that loading raises, without the source's name; one line."""
    with pytest.raises(InputError) as caught:
        load_prompts(spec, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(spec) or message.startswith(repr(spec))
    return message.removeprefix(repr(spec)).removeprefix(spec)


# Every format.

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who wrote it?"},
    {"role": "assistant", "content": "Ann."},
    {"role": "user", "content": 'When,\n"roughly"?'},
    {"role": "assistant", "content": "In 1900."},
]
FIVE = [
    {"messages": CHAT, "kind": "benign", "id": "a"},
    {"messages": CHAT[:1], "kind": "benign", "id": "b"},
    {"messages": CHAT[1:2], "kind": "harmful", "id": "c"},
    {"messages": [CHAT[1], CHAT[0], CHAT[3]], "kind": "benign", "id": "d"},
    {"messages": CHAT[1:2], "kind": "odd", "id": "e"},
]


def write_rows(path: Path, rows: list[dict]) -> str:
    """As people write them: a dataset to Parquet, messages in a table of texts as JSON."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return str(path)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        if ".csv" in path.name or ".tsv" in path.name:
            mark = "\t" if ".tsv" in path.name else ","
            writer = csv.DictWriter(file, list(rows[0]), delimiter=mark)
            writer.writeheader()
            writer.writerows(row | {"messages": json.dumps(row["messages"])} for row in rows)
        elif path.name.startswith("list"):
            json.dump(rows, file, indent=1)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


@pytest.mark.parametrize(
    ("name", "second", "fifth"),
    [
        ("rows.jsonl", "line 2", "line 5"),
        ("rows.jsonl.gz", "line 2", "line 5"),
        ("list.json", "row 1", "row 4"),
        ("rows.json", "row 1", "row 4"),
        ("rows.csv", "line 3", "line 6"),
        ("rows.tsv.gz", "line 3", "line 6"),
        ("rows.parquet", "row 1", "row 4"),
    ],
)
def test_five_rows_in_every_format(tmp_path, capsys, name, second, fifth):
    """What is behind the last request is left out; so are rows that ask nothing, which is said."""
    spec = write_rows(tmp_path / name, FIVE)
    system, first, reply, last = (Turn(**turn) for turn in CHAT[:4])
    assert load_prompts(spec) == [
        Prompt("a", last.content, "benign", "general", conversation=(system, first, reply)),
        Prompt("c", first.content, "harmful", "general"),
    ]
    assert capsys.readouterr().err == (
        f"jaxalign: 3 of 5 rows left out, the first: {spec} {second}: field 'messages' has no "
        "message of the user; give it one or remove the row\n"
    )
    assert [x.id for x in load_requests(spec)] == ["a", "c", "e"]
    assert load_suite(spec)[0] == name.partition(".")[0]
    error = error_of(write_rows(tmp_path / name, FIVE[3:]))
    assert ", message 2: the role is the str 'system'; use user or assistant, or system" in error
    assert error.endswith("(none of 2 rows is usable)")
    spec = write_rows(tmp_path / name, [*FIVE[:1] * 4, *FIVE[4:]])
    assert len(load_prompts(spec)) == 4
    assert f"{spec} {fifth}: field 'kind' is the str 'odd'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("no JSON", "field 'messages' is the str 'no JSON'; it must be a list of messages"),
        (3, "field 'messages' is the int 3; it must be a list"),
        ([], "field 'messages' has no message of the user"),
        ([5, CHAT[1]], "message 1: the role is the NoneType None; use user or assistant"),
        ([{"role": "tool", "content": "x"}, CHAT[1]], "message 1: the role is the str 'tool'"),
        ([CHAT[1], {"role": "assistant"}, CHAT[3]], "message 2, is the NoneType None; it must be"),
        ([CHAT[1], {"role": "user", "content": " "}], "message 2, is empty; give it a text"),
    ],
)
def test_messages_that_are_none(tmp_path, messages, message):
    path = write_rows(tmp_path / "a.jsonl", [{"messages": messages}])
    assert error_of(path, kind="benign").startswith(" line 1: field 'messages'")
    assert message in error_of(path, kind="benign")


def test_messages_under_another_name_and_an_empty_system_turn(tmp_path):
    rows = [{"prompt": [{"role": "system", "content": ""}, *CHAT[1:4]]}, {"prompt": "Why?"}]
    first, second = load_requests(write_rows(tmp_path / "a.jsonl", rows))
    assert [turn.role for turn in first.conversation] == ["user", "assistant"]
    assert first.asked == (*first.conversation, Turn("user", first.text))
    assert second.asked == "Why?"


# Our own.


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_builtin_prompts(split):
    assert load_prompts(f"builtin:{split}") == builtin_prompts(split)
    few = load_prompts(f"builtin:{split}", limit=5)
    assert [p.kind for p in few] == ["harmful", "harmful", "benign", "benign", "lookalike"]
    firsts = {p.kind: p for p in reversed(builtin_prompts(split))}
    assert few[::2] == [firsts[kind] for kind in ("harmful", "benign", "lookalike")]


@pytest.mark.parametrize("name", ["text_field", "kind"])
def test_builtin_prompts_take_no_further_argument(name):
    value = {"text_field": "prompt", "kind": "benign"}[name]
    assert f"{name}= does not apply" in error_of("builtin:train", **{name: value})


def test_unknown_builtin_split():
    with pytest.raises(InputError, match="'dev' does not exist; use 'train' or 'heldout'"):
        load_prompts("builtin:dev")


# JSON lines.


def test_jsonl_in_the_layout_of_our_own_files(tmp_path):
    path = write(
        tmp_path / "mine.jsonl",
        '{"id": "a", "prompt": "How do I whittle?", "kind": "benign", "category": "crafts"}\n'
        "\n"
        '{"prompt": " Café\u2028au lait? ", "kind": "lookalike"}\n',
    )
    assert load_prompts(path) == [
        Prompt("a", "How do I whittle?", "benign", "crafts"),
        Prompt("mine.jsonl:3", " Café\u2028au lait? ", "lookalike", "general"),
    ]


@pytest.mark.parametrize("field", ["target", "pair"])
def test_targets_and_pairs_are_texts_that_are_not_blank(tmp_path, field):
    rows = ['"Sure, here"', '" "', "3", "null"]
    lines = "".join(f'{{"prompt": "x", "kind": "harmful", "{field}": {x}}}\n' for x in rows)
    prompts = load_prompts(write(tmp_path / "a.jsonl", lines))
    assert [getattr(prompt, field) for prompt in prompts] == ["Sure, here", None, None, None]


def test_requests_need_no_kind(tmp_path):
    path = write(
        tmp_path / "mine.jsonl",
        '{"prompt": "Why?"}\n'
        '{"prompt": "How?", "kind": "evil", "label": "unsafe", "category": {"privacy": true}}\n'
        '{"prompt": "Who?", "id": "w", "kind": "benign", "category": "people"}\n',
    )
    assert load_requests(path) == [
        Request("mine.jsonl:1", "Why?", None, None),
        Request("mine.jsonl:2", "How?", "harmful", None),
        Request("w", "Who?", "benign", "people"),
    ]
    assert load_requests(path, limit=1, text_field="prompt") == load_requests(path)[:1]
    assert load_requests("builtin:train", limit=5) == load_prompts("builtin:train", limit=5)
    with pytest.raises(InputError, match="line 1: field 'goal' is missing"):
        load_requests(path, text_field="goal")
    with pytest.raises(InputError, match="text_field= does not apply to builtin prompts"):
        load_requests("builtin:train", text_field="goal")
    with pytest.raises(InputError, match="no rows; give at least one prompt"):
        load_requests(write(tmp_path / "empty.csv", "prompt\n"))


def test_first_known_field_is_the_text_unless_told(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "third", "question": "second", "goal": "first"}')
    assert load_prompts(path, kind="benign")[0].text == "first"
    assert load_prompts(path, kind="benign", text_field="text")[0].text == "third"


def test_kind_argument_overrides_the_columns(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"prompt": "x", "kind": "harmful", "label": "unsafe"}')
    assert load_prompts(path)[0].kind == "harmful"
    assert load_prompts(path, kind="lookalike")[0].kind == "lookalike"


def test_label_column_means_what_it_means_in_xstest(tmp_path):
    path = write(tmp_path / "a.csv", "prompt,label\nx,safe\ny,unsafe\n")
    assert [prompt.kind for prompt in load_prompts(path)] == ["lookalike", "harmful"]


def test_limit_stops_before_a_later_bad_row(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"prompt": "x"}\n{"prompt": "y"}\nbroken')
    assert [p.text for p in load_prompts(path, kind="benign", limit=2)] == ["x", "y"]
    assert " line 3: not valid JSON" in error_of(path, kind="benign", limit=3)


GOOD = '{"prompt": "fine", "kind": "benign"}\n'


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"goal": "x", "kind": "benign"}', "field 'prompt' is missing; every row needs it (found"),
        ('{"prompt": "", "kind": "benign"}', "field 'prompt' is empty"),
        ('{"prompt": " \\t", "kind": "benign"}', "field 'prompt' is empty"),
        ('{"prompt": 5, "kind": "benign"}', "field 'prompt' is the int 5; it must be a string"),
        ('{"prompt": null, "kind": "benign"}', "field 'prompt' is the NoneType None"),
        ('{"prompt": "\\ud800", "kind": "benign"}', "field 'prompt' has half a surrogate pair"),
        ('{"prompt": "x"}', "field 'kind' is missing; add it to every row, or pass kind="),
        ('{"prompt": "x", "kind": "bad"}', "field 'kind' is the str 'bad'; use harmful, benign"),
        ('{"prompt": "x", "kind": ["benign"]}', "field 'kind' is the list ['benign']"),
        ('{"prompt": "x", "kind": "benign", "category": 3}', "field 'category' is the int 3"),
        ('{"prompt": "x"', "not valid JSON (Expecting ',' delimiter at column 15)"),
        ('["x"]', "the list ['x'] where an object with fields is expected"),
        ("1" * 5000, "ValueError: Exceeds the limit"),
        ("[" * 200_000, "RecursionError"),
    ],
)
def test_a_malformed_row_is_named_with_its_line_and_field(tmp_path, capsys, row, message):
    """One that is no row ends the reading; one that asks nothing is left out, unless all are."""
    path = write(tmp_path / "bad.jsonl", GOOD * 5 + "\n" + row + "\n" + GOOD)
    if message.startswith("field"):
        assert len(load_prompts(path)) == 6
        error = capsys.readouterr().err.removeprefix(
            f"jaxalign: 1 of 7 rows left out, the first: {path}"
        )
    else:
        error = error_of(path)
    assert error.startswith(" line 7: ") and message in error
    assert len(error) < 400


def test_a_first_row_without_any_known_text_field(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"query": "x", "n": 1}')
    error = error_of(path, kind="benign")
    assert error.startswith(" line 1: none of the fields prompt, goal, instruction, question")
    assert error.endswith("(found: 'query', 'n'); pass text_field= or --text-field")


def test_a_source_that_does_not_tell_the_kind(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"prompt": "x"}')
    assert error_of(path).endswith(
        "pass kind= or, on the command line, KIND=SPEC, with harmful, benign, lookalike"
    )


def test_labels_of_another_data_set_are_not_guessed_at(tmp_path):
    path = write(tmp_path / "a.csv", "prompt,label\nx,1\n")
    assert error_of(path).startswith(" line 2: field 'label' is the str '1'; use safe, unsafe, or")


json_text = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@given(st.lists(json_text, min_size=1, max_size=5), st.booleans())
@settings(deadline=None)
def test_any_unicode_text_comes_back_as_it_was(tmp_path_factory, texts, ascii_only):
    folder = tmp_path_factory.mktemp("any")
    lines = [json.dumps({"prompt": text}, ensure_ascii=ascii_only) for text in texts]
    path = write(folder / "a.jsonl", "\n".join(lines))
    assert [prompt.text for prompt in load_prompts(path, kind="benign")] == texts


# CSV.


def test_csv_line_numbers_count_comments_and_line_breaks_in_fields(tmp_path):
    path = write(
        tmp_path / "a.csv",
        "\ufeff# version 1\n"  # 1, behind a byte order mark
        "# more\n"  # 2
        "\n"  # 3
        "goal, category\n"  # 4
        '"two\nlines, one field",crafts\n'  # 5 and 6
        "\n"  # 7
        "# a text of its own,\n"  # 8
        '"said ""yes"" twice",general\r\n',  # 9
    )
    assert load_prompts(path, kind="benign") == [
        Prompt("a.csv:5", "two\nlines, one field", "benign", "crafts"),
        Prompt("a.csv:8", "# a text of its own", "benign", "general"),
        Prompt("a.csv:9", 'said "yes" twice', "benign", "general"),
    ]


def test_csv_fields_may_be_wide_and_the_limit_of_the_csv_module_is_put_back(tmp_path):
    before = csv.field_size_limit()
    wide = "word " * 100_000
    path = write(tmp_path / "a.csv", f'prompt,notes\n"x","{wide}"\n')
    assert load_prompts(path, kind="benign", text_field="notes")[0].text == wide
    assert csv.field_size_limit() == before < len(wide)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,b,c", " line 4: 3 fields where the header has 2; quote texts that contain commas"),
        ("a", " line 4: 1 fields where the header has 2"),
        ('"never closed,benign\nb,benign\n', "not valid CSV (unexpected end of data)"),
        ('"a" b,benign', " line 4: not valid CSV"),
    ],
)
def test_a_malformed_csv_row_is_named_with_its_line(tmp_path, rows, message):
    path = write(tmp_path / "a.csv", f'prompt,kind\n"two\nlines",benign\n{rows}')
    assert message in error_of(path)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1))
@settings(deadline=None)
def test_csv_that_python_writes_comes_back_as_it_was(tmp_path_factory, texts):
    texts = [text or "x" for text in map(str.strip, texts)]
    path = tmp_path_factory.mktemp("any") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["n", "text"], *enumerate(texts)])
    assert [prompt.text for prompt in load_prompts(str(path), kind="benign")] == texts


# What is wrong with a whole source.


@pytest.mark.parametrize("text", ["", "\n \n", "# only a comment\n", "prompt,kind\n"])
def test_a_source_without_rows(tmp_path, text):
    assert error_of(write(tmp_path / "a.csv", text)) == ": no rows; give at least one prompt"


def test_an_empty_jsonl_file(tmp_path):
    assert error_of(write(tmp_path / "a.jsonl", "\n")) == ": no rows; give at least one prompt"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json", ".tsv.gz", ".parquet"])
def test_a_missing_file_or_a_folder(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    assert error_of(str(path)).startswith(": No such file or directory; give the path")
    path.mkdir()
    assert error_of(str(path)).startswith(": Is a directory; give the path")


def test_a_file_in_another_encoding_is_named_with_its_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("prompt,kind\nplain,benign\ncafé,benign\n".encode("latin-1"))
    assert error_of(str(path)) == " line 3: not UTF-8; save the file as UTF-8"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl.gz", "{}", "Not a gzipped file (b'{}'); give the path of a readable file"),
        ("a.parquet", "{}" * 9, "ArrowInvalid: Parquet magic bytes not found in footer"),
        ("a.json", "[{}", "JSONDecodeError: Expecting ',' delimiter: line 1 column 4"),
        ("a.json", '[{"prompt": "x"}, 5]', " row 1: the int 5 where an object with fields"),
        ("a.tsv", "prompt\tkind\na", " line 2: 1 fields where the header has 2; quote texts that "),
    ],
)
def test_a_file_that_is_not_what_its_ending_says(tmp_path, name, text, message):
    assert message in error_of(write(tmp_path / name, text), kind="benign")


@pytest.mark.parametrize("spec", ["", "prompts.txt", "walledai/AdvBench", "s3://bucket", "hub:"])
def test_an_unknown_source_lists_what_is_accepted(spec):
    error = error_of(spec)
    for accepted in (
        "builtin:train",
        "FILE.jsonl",
        ".gz",
        "FILE.parquet",
        "hub:NAME",
        "disk:",
        "tfds:NAME",
    ):
        assert accepted in error


def test_arguments_that_make_no_sense(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(InputError, match="kind: unknown value 'evil'; use harmful, benign"):
        load_prompts(path, kind="evil")
    with pytest.raises(InputError, match="limit: 0 is not a number of rows"):
        load_prompts(path, limit=0)


def test_dataset_packages_load_only_when_they_are_needed():
    code = "import sys, jaxalign.data; print({'datasets', 'tensorflow_datasets'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# `datasets`: a folder, and the hub.

ROWS = [{"prompt": "x", "label": "safe"}, {"prompt": "y", "label": "unsafe"}]


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def test_a_dataset_on_disk(tmp_path, datasets):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "set")
    spec = f"disk:{tmp_path / 'set'}"
    assert load_prompts(spec) == [
        Prompt(f"{spec}:0", "x", "lookalike", "general"),
        Prompt(f"{spec}:1", "y", "harmful", "general"),
    ]
    assert error_of(f"{spec}@train") == ": has no splits; leave @train out"


def test_a_dataset_on_disk_with_splits(tmp_path, datasets):
    splits = {"train": ROWS, "test": ROWS[1:]}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    ).save_to_disk(tmp_path / "set")
    spec = f"disk:{tmp_path / 'set'}"
    assert [prompt.text for prompt in load_prompts(spec)] == ["x", "y"]
    assert [prompt.text for prompt in load_prompts(f"{spec}@test")] == ["y"]
    assert error_of(f"{spec}@dev") == ": no split 'dev'; choose one of 'train', 'test'"


def test_class_numbers_of_a_dataset_are_read_by_name(tmp_path, datasets, capsys):
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["unsafe", "safe"]),
            "category": datasets.ClassLabel(names=["privacy"]),
        }
    )
    rows = [
        {"text": "x", "label": 1, "category": 0},
        {"text": "y", "label": 0, "category": None},
        {"text": "z", "label": -1, "category": 0},
    ]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "set")
    spec = f"disk:{tmp_path / 'set'}"
    prompts = load_prompts(spec)
    assert [(prompt.kind, prompt.category) for prompt in prompts] == [
        ("lookalike", "privacy"),
        ("harmful", "general"),
    ]
    assert f"{spec} row 2: field 'label' is the int -1; use safe, unsafe" in capsys.readouterr().err


def test_an_empty_dataset(tmp_path, datasets):
    none = datasets.Dataset.from_list(ROWS).filter(lambda row: False)
    none.save_to_disk(tmp_path / "set")
    assert error_of(f"disk:{tmp_path / 'set'}") == ": no rows; give at least one prompt"


def test_a_folder_that_is_no_dataset(tmp_path, datasets):
    assert "cannot be read; check name" in error_of(f"disk:{tmp_path}")
    assert "not found" in error_of(f"disk:{tmp_path / 'none'}")


def test_a_hub_dataset_with_and_without_a_config(tmp_path, datasets, monkeypatch):
    """`load_dataset` prefers a folder of that name to the hub, so this needs no network."""
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    write(folder / "a.jsonl", '{"prompt": "first", "kind": "benign"}\n')
    write(folder / "b.jsonl", '{"prompt": "second", "kind": "harmful"}\n')
    write(
        folder / "README.md",
        "---\nconfigs:\n"
        "- config_name: a\n  default: true\n  data_files: a.jsonl\n"
        "- config_name: b\n  data_files:\n  - {split: test, path: b.jsonl}\n---\n",
    )
    monkeypatch.chdir(tmp_path)
    for spec in ("hub:owner/name", "hub:owner/name/a"):
        assert load_prompts(spec) == [Prompt(f"{spec}:0", "first", "benign", "general")]
    assert load_prompts("hub:owner/name/b@test") == [
        Prompt("hub:owner/name/b@test:0", "second", "harmful", "general")
    ]
    assert 'Unknown split "train". Should be one of' in error_of("hub:owner/name/b")
    assert "'c' not found" in error_of("hub:owner/name/c")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert error_of("tfds:anything").endswith("install the package")


# `tensorflow_datasets`, without TensorFlow.


@pytest.fixture
def tfds_set(tmp_path, monkeypatch):
    """The name of a small dataset that is prepared as array_record under TFDS_DATA_DIR."""
    import tensorflow_datasets as tfds

    # What TFDS_DATA_DIR sets; TFDS reads it once, when it is imported.
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))

    class JaxalignTiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "goal": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["safe", "unsafe"]),
                "image": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples("train")}

        def _generate_examples(self, split):
            for key, (text, label) in enumerate([("Café?", "safe"), ("Bomb?", "unsafe")]):
                yield key, {"goal": text, "label": label, "image": np.zeros(2, np.float32)}

    JaxalignTiny(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    return "jaxalign_tiny"


def test_a_tfds_dataset(tfds_set):
    prompts = load_prompts(f"tfds:{tfds_set}")
    assert {(prompt.text, prompt.kind) for prompt in prompts} == {
        ("Café?", "lookalike"),
        ("Bomb?", "harmful"),
    }
    assert [prompt.id for prompt in prompts] == [f"tfds:{tfds_set}:0", f"tfds:{tfds_set}:1"]
    assert load_prompts(f"tfds:{tfds_set}:1.0.0@train[:1]")[0].text == prompts[0].text


def test_wrong_split_field_or_name_of_a_tfds_dataset(tfds_set):
    assert "Unknown split 'dev'" in error_of(f"tfds:{tfds_set}@dev")
    assert " row 0: field 'image' is the ndarray" in error_of(
        f"tfds:{tfds_set}", text_field="image"
    )
    error = error_of("tfds:no_such_set_at_all")
    assert "cannot be read" in error and len(error) < 400


# Public sets, as they are published.


def public(name: str) -> str:
    path = PUBLIC_DATA / name
    if not path.is_file():
        pytest.skip(f"public data not here: ../shared/data/{name}")
    return str(path)


def test_advbench():
    path = public("advbench_harmful_behaviors.csv")
    prompts = load_prompts(path, text_field="goal", kind="harmful")
    assert len(prompts) == 520 and {prompt.kind for prompt in prompts} == {"harmful"}
    assert prompts == load_prompts(path, kind="harmful")


def test_advbench_says_how_a_harmful_answer_begins():
    prompts = load_prompts(public("advbench_harmful_behaviors.csv"), kind="harmful")
    assert all(prompt.target and prompt.target.startswith("Sure, here") for prompt in prompts)


def test_xstest():
    prompts = load_prompts(public("xstest_prompts.csv"))
    kinds = collections.Counter(prompt.kind for prompt in prompts)
    assert kinds == {"lookalike": 250, "harmful": 200}
    assert len({prompt.id for prompt in prompts}) == 450


def test_strongreject():
    prompts = load_prompts(public("strongreject_dataset.csv"), kind="harmful")
    assert len(prompts) == 313
    assert len({prompt.category for prompt in prompts}) == 6


def test_alpaca_seed_tasks():
    prompts = load_prompts(public("alpaca_seed_tasks.jsonl"), kind="benign")
    assert len(prompts) == 175
    assert prompts[0].id == "seed_task_0" and "\n\n" not in prompts[0].text
    with_input = sum("\n\n" in prompt.text for prompt in prompts)
    assert with_input > 100  # most instructions are about a text that comes with them


def test_the_first_of_mt_benchs_turns():
    prompts = load_prompts(public("mt_bench_question.jsonl"), kind="benign")
    assert len(prompts) == 80
    assert prompts[0].text.startswith("Compose an engaging travel blog post")
    assert prompts[0].category == "writing"


def test_an_instruction_comes_with_its_input(tmp_path):
    rows = [
        {"instruction": "Add up.", "input": "2 and 3"},
        {"instruction": "Say hello.", "input": ""},
        {"instruction": "Shorten.", "instances": [{"input": "A long text.", "output": "Text."}]},
    ]
    path = tmp_path / "alpaca.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [prompt.text for prompt in load_prompts(str(path), kind="benign")]
    assert texts == ["Add up.\n\n2 and 3", "Say hello.", "Shorten.\n\nA long text."]


def test_comment_before_the_header_of_pyrit():
    path = public("pyrit_refusal.csv")
    assert len(load_prompts(path, text_field="assistant_response", kind="benign")) == 105
