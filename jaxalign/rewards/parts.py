"""A completion's parts on the host: what is reasoning and what is answer, as the verifiers see."""

from typing import NamedTuple

REASONING_TAGS = ("<safety_reasoning>", "</safety_reasoning>")
ANSWER_TAGS = ("<answer>", "</answer>")
CALL_TAGS = ("<consult>", "</consult>")
"""Of a call of ASCL's tool."""
RULE_TAGS = ("<rules>", "</rules>")
"""Of what the tool answers."""


class Parts(NamedTuple):
    """What `split` finds.

    Attributes:
      reasoning: the text in the reasoning's tags; None where there is none.
      answer: the text in the answer's tags; all of an output without the opening one.
      closed: whether both are there and end with their own closing tags.
      reasoning_at: where the reasoning begins, in characters.
      answer_at: where the answer begins.
    """

    reasoning: str | None
    answer: str
    closed: bool
    reasoning_at: int
    answer_at: int


def split(completion: str) -> Parts:
    """Splits what a model wrote; the one definition of its reasoning and its answer on the host.

    The answer goes from the first `<answer>` to the next `</answer>`, or to the end of one that
    breaks off; later answers and what stands behind it are not part of it. An output without
    `<answer>` is all answer (ours: a malformed refusal is still a refusal), its reasoning included.
    These are the tokens of `Verdict.answer`, which V_r reads.

    The reasoning goes from the first `<safety_reasoning>` before the answer to the next
    `</safety_reasoning>`; where that is missing to `<answer>`, or else to the end. So an answer
    inside the reasoning ends it, and tags inside or behind the answer are plain text. The strict
    format is `closed`, and all that is `closed` has the loose one.

    The verifiers do not see what a tool answered: give a completion without it (a file of answers
    has it as `own`), or tags in a rule count as the model's.
    """
    head, opened, rest = completion.partition(ANSWER_TAGS[0])
    answer, ended, _ = rest.partition(ANSWER_TAGS[1])
    before, reasons, rest = head.partition(REASONING_TAGS[0])
    reasoning, done, _ = rest.partition(REASONING_TAGS[1])
    return Parts(
        reasoning=reasoning if reasons else None,
        answer=answer if opened else completion,
        closed=bool(done and ended),
        reasoning_at=len(before + reasons),
        answer_at=len(head + opened) if opened else 0,
    )
