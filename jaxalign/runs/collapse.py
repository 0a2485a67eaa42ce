"""A run whose language wears out: how its evaluations show it, and when it stops."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.host.fields import Checked, Count, Share, Weight
from jaxalign.host.metrics import METRICS_FILE, read_metrics
from jaxalign.reports.run_folder import validation_rates


@dataclasses.dataclass(frozen=True)
class Watched:
    """An evaluation by the validation prompts.

    Attributes:
      step: after which it was.
      rates: `jaxalign.evaluation.measure.summary` of it.
      entropy: in nats per sampled token, mean of the steps since the one before; None where these
        sampled nothing.
    """

    step: int
    rates: Mapping[str, Any]
    entropy: float | None = None


def watched(run: Path) -> list[Watched]:
    """The finished evaluations by validation prompts in a run folder, in their order.

    Raises:
      InputError: a file of theirs or metrics.jsonl is damaged.
    """
    rows = read_metrics(run) if (run / METRICS_FILE).exists() else []
    found, before = [], 0
    for step, rates in validation_rates(run).items():
        drawn = [row.get("entropy") for row in rows if before <= row["step"] < step]
        known = [value for value in drawn if value is not None]
        found.append(Watched(step, rates, statistics.fmean(known) if known else None))
        before = step
    return found


@dataclasses.dataclass(frozen=True)
class Collapse(Checked):
    """Stops a run whose language wears out; the best policy before that is the result (ours).

    An evaluation, of which --evaluate-every N makes one every N steps, is worn when it is below one
    of the two bounds. That of the start never is.
    """

    distinct: Share = 0.5
    """Bound on how many reasonings are different, as a share of the validation prompts. Where the
    start has fewer, its number is the bound: what it did not have can't wear out."""
    entropy: Weight = 0.05
    """Bound on the entropy, in nats per sampled token, mean of the steps between evaluations. Runs
    that sample nothing have none."""
    patience: Count = 2
    """So many worn evaluations, one after the other, stop the run."""

    def signs(self, seen: Watched, start: Watched) -> str:
        """What of an evaluation is below its bound, in words; "" for nothing."""
        prompts, different = seen.rates["prompts"], seen.rates["distinct_reasonings"]
        least = min(self.distinct * prompts, start.rates["distinct_reasonings"])
        found = []
        if different < least:
            found.append(f"{different} of {prompts} reasonings differ (bound: {least:g})")
        if seen.entropy is not None and seen.entropy < self.entropy:
            found.append(f"the entropy is {seen.entropy:.3g} (bound: {self.entropy:g})")
        return " and ".join(found)

    def reason(self, history: Sequence[Watched]) -> str | None:
        """Why a run stops after its latest evaluation; None where it goes on.

        Args:
          history: all of its evaluations so far, that of the start first.
        """
        latest = history[-self.patience :]
        signs = {seen.step: self.signs(seen, history[0]) for seen in latest}
        if len(latest) < self.patience or not all(signs.values()):
            return None
        seen = "; ".join(f"after step {step}, {what}" for step, what in signs.items())
        return f"the language wore out: {seen}"
