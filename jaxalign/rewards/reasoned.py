"""A reward for judgements that are justified in words. Ours.

    R = r_f form + Σ_k w_k part_k

    form       1 where the completion is well-formed
    named      1 where it is, and its reasoning names what was asked for, by two of its words
    verdict    +1 where a well-formed reasoning gives the right verdict, −1 where it gives the
               wrong one, 0 where it gives none, or both
    agreement  4 (h − h̄)(r − r̄) where it gives one: h whether it is "harmful", r whether the answer
               refuses, and their means over such completions of the batch
    quality    of a harmful prompt: +1 for a whole refusal, 0 for a fragment, −1 for no refusal;
               of a harmless one: +1 for an answer, 0 for a stub, for one without two words of its
               own, and for one that judges again, −1 for a refusal
    varied     s̄ − s for a well-formed answer of that kind: s the share of the batch's others, to
               other harmless prompts, that begin alike, and s̄ its mean

A policy that treats all prompts alike earns as much by verdict and quality on one side as it loses
on the other, and with one verdict or one act nothing by agreement, for that is the covariance of
saying and doing: so no part pulls to refusing, to answering or to one verdict, as credit for giving
a verdict at all, or for acting on whatever verdict, was seen to do. Nor does what is paid for
varied answers, of which most would come to begin with "Use". With `balance` verdict and quality are
multiplied by the root of `balanced_weights`, by which the side, harmful or harmless, that goes
wrong more often in a batch counts more: then a policy of one verdict and act loses more than it
earns. By parts (below) verdicts need no such weights, and only quality has them.

With `credit="parts"` each token learns from what it decides (`Division`), beside the form:

    names     named
    judges    1 for the right verdict, else −1
    decides   1 for the right verdict, else −min(1/(1 − π), MOST_SURPRISE), π its probability
    answers   agreement, quality and varied, less the mean of rows of the same verdict and side;
              and what is added, such as helpfulness

But for the form, what comes later can't change what was earned before: leaving that out takes
nothing but noise off the advantages, and so does holding answers to others behind the same verdict
and label. That what comes first doesn't learn from what follows is a choice, for each part has
something of its own to learn from: verdicts are learned from labels, and answers to follow
verdicts, right ones and wrong ones. A verdict is read for that in any reasoning that is closed
before the answer, whatever else the form: the form is paid by itself, and an answer cut short says
nothing against a right verdict.

The word that decides is paid by surprise, for a policy gradient moves the log-odds of the right
verdict by π(1 − π): by next to nothing where a wrong one is sure. With 1/(1 − π) wrong ones move
them by π, as the likelihood of labels would, up to π = 0.8, and beyond by five times as much as
without: a policy that says the same of everything is pulled back. π is the probability of the
verdict, of which a word may be a part ("not safe", "unsafe"): that with which the word was drawn
over the word's share among the batch's completions of that verdict. No verdict, or both, counts as
a wrong one there: else to give none would earn more than to be unsure.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.host.fields import Checked, Positive, Weight
from jaxalign.records import KINDS, Batch, Credit, Metrics, Rollout, Score, of_rows
from jaxalign.rewards.beginnings import OpeningReader, begin_alike
from jaxalign.rewards.divisions import DECIDES, Division
from jaxalign.rewards.parts import ANSWER_TAGS, REASONING_TAGS
from jaxalign.rewards.refusal_judge import RefusalVerifier, refusal_verifier
from jaxalign.rewards.safety import balanced_weights, mean_where
from jaxalign.rewards.stubs import StubReader, stub_reader
from jaxalign.rewards.subjects import LEAST_NEW, SubjectReader, Subjects
from jaxalign.rewards.terms import Addable
from jaxalign.rewards.verdicts import VerdictReader, verdict_reader
from jaxalign.rewards.verifiers import Span, Verdict, Verifiers
from jaxalign.text.matcher import Tokenizer

LEAST_NAMED = 2
"""Words of a request that name it: by one, "The user asks about helping." would do."""


@dataclasses.dataclass(frozen=True)
class Reasoned(Checked):
    """Weights of the parts of `ReasonedReward`, and what balances them; untuned."""

    named: Weight = 1.0
    """Of a reasoning that names what was asked for."""
    verdict: Weight = 2.0
    """Of a reasoning that gives the right verdict."""
    agreement: Weight = 2.0
    """Of refusing behind the verdict "harmful" and answering behind the other one."""
    quality: Weight = 1.0
    """Of whole refusals, and of answers that say something of their own."""
    varied: Weight = 4.0
    """Of answers that don't begin as most others do."""

    prior: Positive = 8.0
    """With --balance, rows of each side that are taken to be wrong, and as many to be right, beside
    those of the batch (`balanced_weights`): with few, refusals swing from batch to batch."""
    credit: Literal["parts", "whole"] = "parts"
    """Whether tokens learn from the parts that they decide, or all of them from the sum. PPO takes
    the sum in either case."""

    def reward(
        self,
        tokenizer: Tokenizer,
        verifiers: Verifiers,
        requests: Sequence[str],
        *,
        format_weight: float = 1.0,
        balance: bool = False,
    ) -> "ReasonedReward":
        """Compiles what the reward reads.

        Args:
          tokenizer: the policy's.
          verifiers: of the format, as `safety_verifiers` makes them.
          requests: all prompts of the run, in the order of `PromptFacts.index`.
          format_weight: r_f.
          balance: see `ReasonedReward`.

        Raises:
          ValueError: the tokenizer decodes in a way that is not supported: see `token_bytes`.
        """
        return ReasonedReward(
            Answers(
                verifiers,
                Span.of(tokenizer, ANSWER_TAGS),
                refusal_verifier(tokenizer),
                stub_reader(tokenizer),
            ),
            Span.of(tokenizer, REASONING_TAGS),
            verdict_reader(tokenizer),
            SubjectReader.build(tokenizer),
            Subjects.of(requests),
            Division.build(tokenizer),
            OpeningReader.build(tokenizer),
            self,
            format_weight,
            balance,
        )


MOST_SURPRISE = 5.0
"""The most that a wrong verdict counts for the word that decides."""


def less_mean_of_like(values: jax.Array, group: jax.Array, groups: int) -> jax.Array:
    """Values `[N, G]` less the mean of their group, `[B]` numbers below `groups`: `[N, G]`."""
    rows = values.reshape(-1)
    sums = jax.ops.segment_sum(jnp.stack([rows, jnp.ones_like(rows)], axis=1), group, groups)
    return (rows - (sums[:, 0] / sums[:, 1])[group]).reshape(values.shape)


def surprise_of(samples: Rollout, decides: jax.Array, verdict: jax.Array) -> jax.Array:
    """min(1/(1 − π), MOST_SURPRISE), π the probability of each row's verdict: see above.

    Args:
      samples: the completions.
      decides: `[B, T]` bool, in each row the one token that decides, or none, which surprises by 1.
      verdict: `[B]`, the number of the verdict; 0 for none or both, which has no other words.

    A share is (count + 1) / (completions with that verdict + 1), or a word that was drawn once,
    with little probability, would pass for a sure one.
    """
    has = decides.any(axis=1)
    words = jnp.where(decides, samples.tokens, 0).sum(axis=1)
    drawn = jnp.exp(jnp.where(decides, samples.logps, 0.0).sum(axis=1))
    same = has & (verdict[:, None] == verdict)
    count = (same & (words[:, None] == words)).sum(axis=1)
    share = jnp.where(verdict == 0, 1.0, (count + 1) / (same.sum(axis=1) + 1))
    surprise = 1.0 / jnp.maximum(1.0 - drawn / share, 1.0 / MOST_SURPRISE)
    return jnp.where(has, surprise, 1.0)


class JudgedAnswers(NamedTuple):
    """What is said of B answers: `[B]` each, bool but for the first two.

    Attributes:
      start: the byte at which the answer begins, 0 where no tag opens it.
      stop: the byte before which it ends.
      refused: as `judge_refusal` has it.
      whole: it refuses in a whole sentence.
      stub: as `is_stub` has it.
    """

    start: jax.Array
    stop: jax.Array
    refused: jax.Array
    whole: jax.Array
    stub: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """Tells form, refusals and stubs; a pytree.

    Called, it is what `jaxalign.rewards.Helpfulness` asks which answers are worth nothing: a
    `Verdict` by which refusals in any words, and stubs, are refused.

    Attributes:
      verifiers: of the format.
      span: where the answer is.
      refusals: tells refusals, and whole ones.
      stubs: tells stubs.
    """

    verifiers: Verifiers
    span: Span
    refusals: RefusalVerifier
    stubs: StubReader

    def judge(self, tokens: jax.Array, mask: jax.Array) -> JudgedAnswers:
        """Of `[B, T]` completions and what is read of them."""
        place = self.span.bounds(tokens, mask)
        refused, whole = map(jnp.asarray, self.refusals(tokens, mask, *place))
        return JudgedAnswers(*place, refused, whole, self.stubs(tokens, mask, *place))

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> Verdict:
        """See above."""
        judged = self.judge(tokens, mask)
        return self.verifiers(tokens, mask)._replace(refused=judged.refused | judged.stub)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ReasonedReward(Addable):
    """The terms `form`, `named`, `verdict`, `agreement`, `quality` and `varied`, and their sum.

    Made by `Reasoned.reward`. The outcome is 1 where a well-formed completion gives the right
    verdict and acts on it, else 0.

    Attributes:
      answers: tells form, refusals and stubs.
      reasoning: where the reasoning is.
      verdicts: reads verdicts.
      names: tells what is named of a subject, and what an answer adds to it.
      subjects: of all prompts of the run, by `PromptFacts.index`.
      division: tells which tokens decide what.
      openings: reads with what an answer begins.
      weights: of the parts.
      format_weight: r_f.
      balance: see above.
    """

    answers: Answers
    reasoning: Span
    verdicts: VerdictReader
    names: SubjectReader
    subjects: Subjects
    division: Division
    openings: OpeningReader
    weights: Reasoned = dataclasses.field(metadata={"static": True})
    format_weight: float = dataclasses.field(default=1.0, metadata={"static": True})
    balance: bool = dataclasses.field(default=False, metadata={"static": True})

    def __call__(self, batch: Batch, samples: Rollout) -> Score:
        """The `Score` of completions of prompts with kinds and `PromptFacts`."""
        if batch.kind is None:
            raise ValueError("the reasoned reward needs the kind of each prompt: set Batch.kind")
        kind = of_rows(batch.kind, samples)
        harmful, said = kind == KINDS.index("harmful"), samples.readable(samples.mask)
        given = samples.tokens, said
        reasoning = self.reasoning.bounds(*given)
        form = self.answers.verifiers(*given)
        formed = form.well_formed
        start, stop, refused, whole, stub = self.answers.judge(*given)
        bad, good = map(jnp.asarray, self.verdicts(*given, *reasoning))
        closed = (reasoning[0] > 0) & (reasoning[1] < start)
        told = closed & (bad != good)
        decided = formed & told
        asked = self.subjects.take(of_rows(batch.facts.index, samples))
        named = formed & self.names(asked, *given, *reasoning).names(LEAST_NAMED)
        new = self.names(asked, *given, start, stop).new
        judges_again = jnp.logical_or(*map(jnp.asarray, self.verdicts(*given, start, stop)))
        empty = stub | (new < LEAST_NEW) | judges_again

        right = decided & (bad == harmful)
        agrees = decided & (bad == refused)
        from_mean = lambda x: x - mean_where(x, decided)  # noqa: E731
        wrongly = refused != harmful
        prompts = batch.prompts.tokens.shape[0]
        answered = formed & ~harmful & ~refused & ~empty
        alike = begin_alike(
            self.openings(samples.tokens, form.answer), answered, len(kind) // prompts
        )
        good_of_its_side = jnp.where(harmful, whole, ~refused & ~empty)
        of_acts = of_verdicts = jnp.ones(len(kind))
        if self.balance:
            prior = self.weights.prior
            of_acts = jnp.sqrt(balanced_weights(harmful, refused, prior=prior))
            judged = jnp.where(right, harmful, ~harmful)
            of_verdicts = jnp.sqrt(balanced_weights(harmful, judged, prior=prior))
        parts = {
            "form": formed,
            "named": named,
            "verdict": jnp.where(right, of_verdicts, -of_verdicts) * decided,
            "agreement": jnp.where(decided, 4.0 * from_mean(bad) * from_mean(refused), 0.0),
            "quality": of_acts * (1.0 * good_of_its_side - wrongly),
            "varied": jnp.where(answered, mean_where(alike, answered) - alike, 0.0),
        }
        terms = {x: y.astype(jnp.float32).reshape(prompts, -1) for x, y in parts.items()}
        weights = {"form": self.format_weight, **vars(self.weights)}
        total = sum(weights[name] * term for name, term in terms.items())
        metrics: Metrics = {
            "well_formed": formed.mean(),
            "subject_named": named.mean(),
            "verdict_right": right.mean(),
            "verdict_agrees": mean_where(agrees, decided),
            "whole_refusals": mean_where(whole, refused),
            "stubs": mean_where(stub | (new < LEAST_NEW), ~refused),
            "judges_again": mean_where(judges_again, ~refused),
            "begin_alike": mean_where(alike, answered),
        }
        for index, name in enumerate(KINDS):
            metrics[f"{name}_refused"] = mean_where(refused, kind == index)
        details = {"well_formed": formed, "refused": refused, "whole": whole}
        details["called_harmful"] = decided & bad
        details |= {name: term.reshape(-1) for name, term in terms.items()}
        outcome = (right & agrees).astype(jnp.float32).reshape(prompts, -1)
        credit = None
        if self.weights.credit == "parts":
            part = self.division(*given)
            verdict = jnp.where(told, 1 + bad, 0)
            surprise = surprise_of(samples, said & (part == DECIDES), verdict)
            judges, decides = (
                jnp.where(told & (bad == harmful), 1.0, -wrong).reshape(prompts, -1)
                for wrong in (1.0, surprise)
            )
            like = 3 * harmful + jnp.where(formed, verdict, 0)
            answers = sum(
                weights[name] * terms[name] for name in ("agreement", "quality", "varied")
            )
            earned = [
                weights["named"] * terms["named"],
                weights["verdict"] * judges,
                weights["verdict"] * decides,
                less_mean_of_like(answers, like, 6),
            ]
            credit = Credit(weights["form"] * terms["form"] + jnp.stack(earned), part)
        return Score(jnp.asarray(total), outcome, terms, details, metrics, credit)
