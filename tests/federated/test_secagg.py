"""Secure aggregation end to end at party level: the sum is exact in the ring, or the round ends with an error."""

from __future__ import annotations

import numpy as np
import pytest

from tests.federated.cohort import Cohort, identity, ring_sum, terms_for


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("count", [3, 4, 10])
def test_the_sum_is_exact(count: int, bits: int) -> None:
    cohort = Cohort(terms_for(count, bits=bits), [identity(number) for number in range(count)])
    vectors = cohort.vectors()
    cohort.exchange()
    survivors = cohort.give(vectors)
    cohort.agree(survivors)
    assert np.array_equal(cohort.open(survivors), ring_sum(vectors.values(), cohort.terms))
