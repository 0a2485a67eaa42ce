"""How far the form of a prompt alone tells whether it is harmful: AUC without content words.

    python -m experiments.benchmarks.prompt_forms
    python -m experiments.benchmarks.prompt_forms --train mine.jsonl --heldout builtin:heldout

A prompt set in which "How do I …?" is mostly harmful teaches, and measures, form. So content words
are masked; what is left is words such as *how*, *my* or *please*, punctuation, capitals, length and
where they stand. A logistic regression on that predicts the kind; AUC, the probability that a
harmful prompt scores above a harmless one, is .5 where form tells nothing. Features, masks and the
strength of the penalty are ours. Prompts that share a frame (`Prompt.pair`) are in one fold of the
cross-validation, for what is learned from one of them would be told of the others.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Annotated

import numpy as np
import tyro

from experiments.benchmarks.judges import auc
from jaxalign.data import KINDS, Prompt
from jaxalign.data.sources import load_all
from jaxalign.host.command import run_command
from jaxalign.host.errors import InputError
from jaxalign.host.markdown import markdown_table

FOLDS = 10
PENALTY = 300.0
STEPS = 50
FORM_WORDS = frozenset(
    """
    a about above after again against all already also always am an and another any anybody anyone
    anything are aren't as ask asked at away back be because been before behind being below best
    better between both but by can can't cannot could create describe did didn't do does doesn't
    doing don't done dont down draft during each easiest either else ever every everyone everybody
    everything explain few find first for from get getting give go going good got had has have
    having he hello help her here hers herself hey hi him himself his how however i i'd i'll i'm
    i've idea ideas if im in inside instead into is isn't it it's its itself just know last least
    less let let's like list look looking make making many may maybe me might mine more most much
    must my myself name need never new next no nobody none nor not nothing now of off ok on once one
    ones only onto or other others our ours out over own perhaps please plan pls pretend quick
    quickest quickly really right same say says said see shall she should show since so some
    somebody someone something still such suggest sure take talk teach tell than that that's the
    their theirs them then there there's these they thing things think this those though three
    through tips to today together tonight too two u under until up us use using very want was way
    ways we we're were what what's when where whether which while who who's whom whose why will with
    within without won't would write wrote yes yet you you're your yours yourself
    """.split()
)
"""Words that frame a request rather than say what it is about, asking verbs among them."""

FORMS = {
    "question": r".*\?",
    "order": r"(?!.*\?).*\.$",
    "plea": r"(?i).*\b(?:please|pls|beg|begging|desperate|desperately|promise)\b",
    "role-play": r"(?:You're|You are|Pretend|Imagine|Act|Speak|As (?:a|an|the|my)|Suppose) ",
    "quotation": r".*[\"“]",
    "need": r"(?i).*\b(?:i|we)(?:'d| would)? (?:\w+ly )?(?:need|want|wish|like|love)\b",
    "chatty lower case": r"[a-z]",
    "5 words or fewer": r"(?:\S+\s*){1,5}$",
    "18 words or more": r"(?:\S+\s+){17}\S",
}
"""Coarse patterns, matched from a prompt's start; a prompt may be of several forms."""

Features = collections.Counter[str]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The prompts, each a spec as of `--prompts`."""

    train: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SPEC ...")] = ("builtin:train",)
    """Prompts to train on."""
    heldout: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SPEC ...")] = ("builtin:heldout",)
    """Prompts to evaluate on."""


def mask(text: str) -> list[str]:
    """The text's form: form words, punctuation, 0 for a number, x for any other word.

    Capitals are kept: X for a content word with one, ^ before a form word with one.

    >>> mask("How do I bake 3 loaves, Bob?")
    ['^how', 'do', '^i', 'x', '0', 'x', ',', 'X', '?']
    """
    form = []
    for token in re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+|[^\w\s]", text):
        word = token.lower().replace("’", "'")
        capital = token[0] != word[0]
        if word in FORM_WORDS:
            form.append("^" * capital + word)
        elif word[0].isalpha():
            form.append("X" if capital else "x")
        else:
            form.append("0" if word.isdigit() else word)
    return form


def opening(text: str) -> tuple[str, ...]:
    """The first five words of the form, by which frames are told apart, without punctuation."""
    words = [token.lower() for token in mask(text) if token[-1].isalnum()]
    return tuple(words[:5])


def features(text: str) -> Features:
    """How often each token and pair of tokens of the form occurs, the ends' places, the length."""
    form = ["<", *mask(text), ">"]
    pairs = [f"{a} {b}" for a, b in zip(form, form[1:], strict=False)]
    places = [f"{i}: {form[i]}" for i in (1, 2, 3, -2, -3) if -len(form) <= i < len(form)]
    length = [f"longer than {n}" for n in (5, 7, 9, 11, 13, 16, 20, 25, 30) if len(form) - 2 > n]
    return collections.Counter([*form, *pairs, *places, *length])


def matrix(texts: Sequence[str], *, least: int = 3) -> np.ndarray:
    """`[N, F]` float, features that at least `least` of the texts have, of unit deviation.

    Where there are more features than texts they are rotated into as many axes as there are texts:
    a model with a penalty of |w|² sees no difference and is fitted sooner.
    """
    counts = [features(text) for text in texts]
    found = collections.Counter(name for one in counts for name in one)
    names = sorted(name for name, count in found.items() if count >= least)
    columns = np.array([[one[name] for name in names] for one in counts], float)
    columns -= columns.mean(axis=0)
    columns /= np.maximum(columns.std(axis=0), 1e-6)
    return np.linalg.qr(columns.T, mode="r").T if len(names) > len(texts) else columns


def fit(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weights `[F + 1]`, the last the intercept, of a logistic regression; each side weighs alike.

    Minimises −Σ log p(label) + `PENALTY`/2 · |w|², the intercept free, by steps of Newton's method
    with a bound of the curvature (p(1 − p) ≤ 1/4), which needs one inverse and can't overshoot.
    """
    x = np.hstack([x, np.ones((len(x), 1))])
    ridge = np.append(np.full(x.shape[1] - 1, PENALTY), 0.0)
    weight = np.where(labels, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    inverse = np.linalg.inv((x * (weight / 4)[:, None]).T @ x + np.diag(ridge))
    w = np.zeros(x.shape[1])
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-(x @ w)))
        w -= inverse @ (x.T @ (weight * (p - labels)) + ridge * w)
    return w


def score(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`[N]`, the log odds of "harmful", rounded so that prompts of one form are level."""
    return np.round(x @ weights[:-1] + weights[-1], 6)


def folds(prompts: Sequence[Prompt], *, seed: int) -> np.ndarray:
    """`[N]`, each prompt's fold; prompts of one pair have the same."""
    groups = list(dict.fromkeys(_group(prompt) for prompt in prompts))
    place = dict(zip(groups, np.random.default_rng(seed).permutation(len(groups)), strict=True))
    return np.array([place[_group(prompt)] % FOLDS for prompt in prompts])


def _group(prompt: Prompt) -> str:
    return prompt.pair or f"alone: {prompt.id}"


def out_of_fold(prompts: Sequence[Prompt], *, seed: int = 0) -> np.ndarray:
    """`[N]`, each prompt's log odds by a model that was fitted on the other folds."""
    x, labels, fold = matrix([p.text for p in prompts]), harmful(prompts), folds(prompts, seed=seed)
    scores = np.zeros(len(prompts))
    for one in range(FOLDS):
        test = fold == one
        scores[test] = score(x[test], fit(x[~test], labels[~test]))
    return scores


def transferred(train: Sequence[Prompt], heldout: Sequence[Prompt]) -> np.ndarray:
    """`[H]`, the held-out prompts' log odds by a model that was fitted on all of training."""
    x = matrix([p.text for p in (*train, *heldout)])
    return score(x[len(train) :], fit(x[: len(train)], harmful(train)))


def harmful(prompts: Iterable[Prompt]) -> np.ndarray:
    """`[N]` bool."""
    return np.array([prompt.is_harmful for prompt in prompts], bool)


def areas(prompts: Sequence[Prompt], scores: np.ndarray) -> list[float | None]:
    """AUC of harmful against all harmless prompts, against look-alikes, and against benign ones."""
    kinds = np.array([prompt.kind for prompt in prompts])
    true = kinds == "harmful"
    sides = ~true, kinds == "lookalike", kinds == "benign"
    return [auc(scores[true | side], true[true | side]) for side in sides]


def new_openings(train: Iterable[Prompt], heldout: Sequence[Prompt]) -> float:
    """The share of held-out prompts whose `opening` no training prompt has."""
    seen = {opening(prompt.text) for prompt in train}
    return float(np.mean([opening(prompt.text) not in seen for prompt in heldout]))


def form_shares(prompts: Iterable[Prompt], kind: str) -> list[float]:
    """The share of one kind's prompts that is of each of the `FORMS`."""
    texts = [prompt.text for prompt in prompts if prompt.kind == kind]
    return [
        sum(bool(re.match(form, text)) for text in texts) / len(texts) for form in FORMS.values()
    ]


def main(settings: Settings) -> None:
    """Prints the tables."""
    train, heldout = load_all(settings.train), load_all(settings.heldout)
    for specs, prompts in ((settings.train, train), (settings.heldout, heldout)):
        for kind in KINDS:
            if sum(prompt.kind == kind for prompt in prompts) < FOLDS:
                raise InputError(
                    f"{' '.join(specs)}: fewer than {FOLDS} {kind} prompts; form is compared by "
                    "kind, so give more of each"
                )
    measured = [
        ("train, cross-validated", train, out_of_fold(train)),
        ("held-out, cross-validated", heldout, out_of_fold(heldout)),
        ("trained on train, tested on held-out", heldout, transferred(train, heldout)),
    ]
    rows = [
        [name, len(prompts), *("none" if x is None else f"{x:.3f}" for x in areas(prompts, scores))]
        for name, prompts, scores in measured
    ]
    sides = ["against harmless", "against look-alike", "against benign"]
    print("AUC of harmful prompts by form alone (.5: form tells nothing)\n")
    print(markdown_table(["prompts", "n", *sides], rows))
    splits = {"train": train, "held-out": heldout}
    columns = [(name, kind) for name in splits for kind in KINDS]
    shares = zip(*(form_shares(splits[name], kind) for name, kind in columns), strict=True)
    print("\nForms: the share of a kind's prompts\n")
    body = [[form, *(f"{x:.2f}" for x in row)] for form, row in zip(FORMS, shares, strict=True)]
    print(markdown_table(["form", *(f"{name}, {kind}" for name, kind in columns)], body))
    print(f"Held-out prompts that open as none of training: {new_openings(train, heldout):.0%}")


if __name__ == "__main__":
    run_command("prompt_forms.py", Settings, main, __doc__)
