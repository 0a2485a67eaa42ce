"""The code and the cases: ours keep their promises; a user's file is read, or refused by name."""

import collections
import csv
import re
from pathlib import Path

import pytest
from near_duplicates import near_duplicates

from jaxalign.data import (
    CATEGORIES,
    builtin_cases,
    builtin_code,
    builtin_prompts,
    code_text,
    load_cases,
    load_code,
)
from jaxalign.data.templates import alphaalign_messages, coded_messages, encode_prompts
from jaxalign.host.errors import InputError

HAZARDS = tuple(category for category in CATEGORIES if category != "general")
CODE = "version: 2\nshort: Do no harm.\ndetailed: {a: [One., Two.], b: [Three.]}"
CASE = "{{request: {}, reasoning: Since., outcome: {}}}"
CASES = (
    f"version: 2\ncases: {{a: [{CASE.format('How.', 'refuse')}, {CASE.format('Why.', 'comply')}]}}"
)


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_our_code_has_clauses_to_cite_for_every_hazard(smollm2_tokenizer):
    code = builtin_code()
    assert tuple(code.detailed) == HAZARDS and code.version == 2
    assert all(len(clauses) >= 3 for clauses in code.detailed.values())
    cited = code.cite()
    assert cited["privacy.1"] == code.detailed["privacy"][0]
    assert len(cited) == sum(map(len, code.detailed.values())) == len(set(cited.values()))
    short = len(smollm2_tokenizer.encode(code.short))
    detailed = sum(len(smollm2_tokenizer.encode(clause)) for clause in cited.values())
    assert short < 120 and detailed > 5 * short


def test_our_cases_end_both_ways_in_every_hazard():
    cases = builtin_cases()
    counts = collections.Counter((case.category, case.outcome) for case in cases)
    assert counts == {(hazard, end): 2 for hazard in HAZARDS for end in ("refuse", "comply")}
    assert list(dict.fromkeys(case.category for case in cases)) == list(HAZARDS)


def test_the_text_for_the_models_context(tmp_path):
    code = load_code(written(tmp_path, CODE))
    cases = load_cases(written(tmp_path, CASES))
    assert code_text(code) == "Safety code: Do no harm."
    assert code_text(code, detailed=True) == "Safety code:\na.1: One.\na.2: Two.\nb.1: Three."
    assert code_text(code, cases=cases[:1]) == (
        "Safety code: Do no harm.\n\nCases:\nRequest: How. Reasoning: Since. Outcome: refuse."
    )


@pytest.mark.parametrize("detailed", [False, True])
def test_the_context_comes_once_before_the_request(smollm2_tokenizer, detailed):
    """Code and cases are in the prefix that a batch shares, and no letter of it is lost."""
    context = code_text(builtin_code(), detailed=detailed, cases=builtin_cases())
    encoded = encode_prompts(
        smollm2_tokenizer, coded_messages(context), ["How?", "Why is that?"], max_tokens=40
    )
    assert context in smollm2_tokenizer.decode(encoded.prefix)
    plain = encode_prompts(smollm2_tokenizer, alphaalign_messages, ["How?"], max_tokens=40)
    assert encoded.tokens[0][encoded.mask[0]].tolist() == plain.tokens[0].tolist()
    assert 1500 < len(encoded.prefix) - len(plain.prefix) < 5000


def test_no_case_is_a_prompt_of_ours():
    """They stand in the model's context or teach it, so they must not be what it is asked."""
    requests = [case.request for case in builtin_cases()]
    for split in ("train", "heldout"):
        prompts = [prompt.text for prompt in builtin_prompts(split)]
        pairs = near_duplicates(requests, prompts)
        assert not pairs, [(requests[i], prompts[j]) for i, j, _ in pairs]


XSTEST = Path(__file__).parents[3] / "shared" / "data" / "xstest_prompts.csv"


WORD_TRAPS = ("homonyms", "figurative_language", "safe_targets", "safe_contexts")
"""XSTest's types of harmless requests with a word that looks harmful, 25 of each."""


@pytest.mark.skipif(not XSTEST.exists(), reason="needs XSTest's prompts in ../shared/data")
def test_no_case_or_clause_answers_xstest():
    """No word of its harmless requests that looks harmful stands in our texts beside another word
    of the request, such as `shoot` beside `photo`: over-refusal is measured with them."""

    def stems(text):
        return {word[:5] for word in re.findall("[a-z]{3,}", text.lower())}

    common = stems("what where how the best good way ways can one not for and does steps should")
    common |= stems("take make about from with without some someone process write general are this")
    texts = [case.request for case in builtin_cases()] + list(builtin_code().cite().values())
    with XSTEST.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["type"] in WORD_TRAPS]
    assert len(rows) == 100
    leaks = [
        (row["prompt"], text)
        for row in rows
        for text in texts
        if stems(row["focus"]) <= stems(text)
        and (stems(row["prompt"]) - stems(row["focus"]) - common) & stems(text)
    ]
    assert not leaks, leaks


def test_a_users_files(tmp_path):
    code = load_code(written(tmp_path, CODE))
    assert (code.version, code.short) == (2, "Do no harm.")
    assert code.cite() == {"a.1": "One.", "a.2": "Two.", "b.1": "Three."}
    with pytest.raises(TypeError):
        code.detailed["c"] = ()
    first, second = load_cases(written(tmp_path, CASES))
    assert (first.category, first.request, first.reasoning) == ("a", "How.", "Since.")
    assert (first.outcome, second.outcome) == ("refuse", "comply")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            CODE.replace("version: 2\n", ""),
            "must have the three fields version, short and detailed",
        ),
        (CODE.replace("2", "0"), "version is 0"),
        (CODE.replace("Do no harm.", "''"), "short must be a text"),
        (CODE.replace("Do no harm.", "x" * 801), "short has 801 characters; shorten it to 800"),
        (CODE.replace("[Three.]", "Three."), "detailed of b must be a list of at least one"),
        (CODE.replace("[Three.]", "[]"), "detailed of b must be a list of at least one"),
        (CODE.replace("Three.", "3"), r"clause b\.1 must be a text"),
        (CODE.replace("b:", "B:"), "category 'B'; use lower-case letters"),
        ("version: 1\nshort: a\ndetailed: []", "detailed must map at least one category"),
    ],
)
def test_a_bad_code_is_refused_in_one_line(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        load_code(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CASES.replace("cases:", "case:"), "must have the two fields version and cases"),
        (CASES.replace("refuse", "deny"), r"outcome of case a\.1 is 'deny'; use refuse or comply"),
        (CASES.replace("refuse", "comply"), "all cases of a end in comply; add one that does not"),
        (CASES.replace("How.", "Why."), "request 'Why[.]' occurs twice"),
        (CASES.replace("reasoning: Since.", "reason: So.", 1), r"case a\.1 must have request"),
        (CASES.replace("How.", "<b>"), r"request of case a\.1 has < or >"),
        (CASES.replace("Since.", "y" * 301, 1), r"reasoning of case a\.1 has 301 characters"),
        ("version: 1\ncases: {a: [b]}", r"case a\.1 must have request, reasoning and outcome"),
    ],
)
def test_bad_cases_are_refused_in_one_line(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        load_cases(path)
    assert re.match(re.escape(str(path)), str(caught.value)) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    for load in (load_code, load_cases):
        with pytest.raises(InputError, match=r"none\.yaml: cannot be read"):
            load(tmp_path / "none.yaml")
