"""Rewards that add up, computed on the device from token ids or by a function of the user's."""

from jaxalign.rewards.answer_scores import Likelihood, PromptFacts, RewardModel
from jaxalign.rewards.english import reads_english
from jaxalign.rewards.helpfulness import Helpfulness, helpfulness_reward
from jaxalign.rewards.parts import ANSWER_TAGS, REASONING_TAGS, Parts, split
from jaxalign.rewards.reasoned import Reasoned, ReasonedReward
from jaxalign.rewards.refusal_judge import (
    Refusal,
    RefusalVerifier,
    judge_refusal,
    refusal_verifier,
)
from jaxalign.rewards.refusals import (
    FIRST_SENTENCE,
    FIRST_SENTENCE_REFUSAL_PATTERN,
    REFUSAL_PATTERN,
    REFUSAL_PHRASES,
    REFUSAL_WORDINGS,
    wording_pattern,
)
from jaxalign.rewards.safety import Safety, balanced_weights, safety_reward
from jaxalign.rewards.stubs import StubReader, echoes, is_stub, stub_reader
from jaxalign.rewards.subjects import (
    LEAST_NEW,
    SubjectReader,
    Subjects,
    mask_subject,
    names_subject,
    new_words,
    subject_stems,
)
from jaxalign.rewards.terms import Addable, Reward, Sum, device_reward, host_reward
from jaxalign.rewards.verdicts import (
    ReasonedVerdict,
    VerdictReader,
    verdict_in,
    verdict_reader,
)
from jaxalign.rewards.verifiers import (
    CONSULTING_FORMAT_PATTERN,
    FORMAT_PATTERN,
    STRICT_FORMAT_PATTERN,
    Span,
    Verdict,
    Verifiers,
    safety_verifiers,
    verdict_of,
)
from jaxalign.text.automaton import Automaton, compile_pattern, compile_phrases
from jaxalign.text.matcher import Matcher, token_bytes
from jaxalign.text.spellings import SPELLINGS

__all__ = [
    "Addable",
    "Sum",
    "Helpfulness",
    "Likelihood",
    "PromptFacts",
    "Reward",
    "RewardModel",
    "Safety",
    "balanced_weights",
    "device_reward",
    "host_reward",
    "ANSWER_TAGS",
    "CONSULTING_FORMAT_PATTERN",
    "FIRST_SENTENCE",
    "FIRST_SENTENCE_REFUSAL_PATTERN",
    "FORMAT_PATTERN",
    "LEAST_NEW",
    "REASONING_TAGS",
    "Reasoned",
    "ReasonedReward",
    "ReasonedVerdict",
    "Refusal",
    "RefusalVerifier",
    "REFUSAL_PATTERN",
    "REFUSAL_PHRASES",
    "REFUSAL_WORDINGS",
    "SPELLINGS",
    "STRICT_FORMAT_PATTERN",
    "Span",
    "StubReader",
    "SubjectReader",
    "Subjects",
    "Automaton",
    "Matcher",
    "Parts",
    "Verdict",
    "VerdictReader",
    "Verifiers",
    "compile_pattern",
    "compile_phrases",
    "echoes",
    "helpfulness_reward",
    "is_stub",
    "judge_refusal",
    "mask_subject",
    "names_subject",
    "new_words",
    "reads_english",
    "refusal_verifier",
    "safety_reward",
    "safety_verifiers",
    "split",
    "stub_reader",
    "subject_stems",
    "token_bytes",
    "verdict_in",
    "verdict_of",
    "verdict_reader",
    "wording_pattern",
]
