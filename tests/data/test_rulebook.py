"""The rule book: our own rules keep their promises; a user's file is read, or refused by name."""

import pytest

from jaxalign.data import CATEGORIES, builtin_rules, load_rules
from jaxalign.data.rulebook import MAX_RULE_CHARACTERS
from jaxalign.host.errors import InputError


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_our_rules_cover_every_category_in_order(smollm2_tokenizer):
    book = builtin_rules()
    assert tuple(book.rules) == CATEGORIES
    assert book.version == 1
    longest = max(len(smollm2_tokenizer.encode(text)) for text in book.rules.values())
    assert 10 < longest <= 64  # a rule is read in the middle of an answer
    assert len(set(book.rules.values())) == len(CATEGORIES)


def test_a_users_file(tmp_path):
    path = written(tmp_path, "version: 3\nrules:\n  my_own: |\n    Two\n    lines.\n  b: Größe\n")
    book = load_rules(path)
    assert (book.version, dict(book.rules)) == (3, {"my_own": "Two lines.", "b": "Größe"})
    with pytest.raises(TypeError):
        book.rules["c"] = "no"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [", "not a YAML file of plain texts"),
        ("- a", "must have the two fields version and rules"),
        ("version: 1\nrules: {a: b}\nmore: 1", "must have the two fields version and rules"),
        ("version: one\nrules: {a: b}", "version is 'one'; use a whole number from 1"),
        ("version: true\nrules: {a: b}", "version is True"),
        ("version: 0\nrules: {a: b}", "version is 0"),
        ("version: 1\nrules: {}", "rules must map at least one category"),
        ("version: 1\nrules: [a]", "rules must map at least one category"),
        ("version: 1\nrules: {Self Harm: b}", "category 'Self Harm'; use lower-case letters"),
        ("version: 1\nrules: {1: b}", "category 1; use lower-case letters"),
        ("version: 1\nrules: {a: ''}", "rule a must be a text"),
        ("version: 1\nrules: {a: 7}", "rule a must be a text"),
        ("version: 1\nrules: {a: b, a: c}", "'a' occurs twice"),
        ("version: 1\nrules: {a: see </rules>}", "rule a has < or >"),
        (f"version: 1\nrules: {{a: {'x' * 401}}}", f"has 401 characters; .* {MAX_RULE_CHARACTERS}"),
        ("version: 2020-99-99\nrules: {a: b}", "not a YAML file of plain texts"),
        ('version: 1\nrules: {a: "x\\0y"}', "rule a has an unprintable character"),
        ("version: 1\nrules: {a: !!python/name:os.system x}", "not a YAML file of plain texts"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        load_rules(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read"):
        load_rules(tmp_path / "none.yaml")
