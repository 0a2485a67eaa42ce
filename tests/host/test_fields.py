"""What a dataclass that checks itself refuses, in one line that names class and field."""

import dataclasses

import numpy as np
import pytest

from jaxalign.engine import GRPO, Cispo, Clipped, InverseFrequency, PerTerm, Sampling, Updates
from jaxalign.engine.baselines import Shrinkage
from jaxalign.host.errors import InputError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampling(0, 5), "Sampling.samples_per_prompt=0 is too small: at least 1"),
        (lambda: Sampling(2.5, 4), "Sampling.samples_per_prompt=2.5 must be a whole number"),
        (lambda: Sampling(2, None), "Sampling.max_new_tokens=None must be a whole number"),
        (lambda: Sampling(2, 2**31), "Sampling.max_new_tokens=2147483648 is too large"),
        (lambda: Updates("3"), "Updates.epochs=3 must be a whole number"),
        (lambda: Updates(True), "Updates.epochs=True must be a whole number"),
        (lambda: Clipped(low=2), "Clipped.low=2 must be from 0 to 1"),
        (lambda: Clipped(high=float("nan")), "Clipped.high=nan must be a number, 0 or above"),
        (lambda: Clipped(high=np.ones(2)), "Clipped.high=[1. 1.] must be a number"),
        (lambda: Clipped(dual=1.0), "Clipped.dual=1.0 must be a number above 1, or None"),
        (lambda: Cispo(1.0, 2.0), "Cispo.max_ratio=1.0 must be above min_ratio"),
        (lambda: PerTerm((1.0, np.inf)), "PerTerm.weights=(1.0, inf) must be a number for each"),
        (
            lambda: GRPO(Shrinkage(), adjust=InverseFrequency(form="baseline")),
            "GRPO.adjust is a baseline of its own, by form=baseline: it goes with the advantages",
        ),
        (
            lambda: dataclasses.replace(Updates(), micro_batches=0),
            "Updates.micro_batches=0 is too small",
        ),
    ],
)
def test_what_may_not_be_is_named(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_numbers_of_numpy_and_none_where_it_may_be():
    assert Updates(np.int64(3)).epochs == 3 and Clipped(high=np.float32(0.3), dual=None).low == 0.2
