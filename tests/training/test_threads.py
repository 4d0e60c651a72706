"""How many threads the libraries use that share a processor."""

import numba
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from raysys.training.threads import threads


def counts():
    blas = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
    return torch.get_num_threads(), numba.get_num_threads(), blas


@pytest.mark.parametrize("count", [1, None])
def test_all_libraries_use_what_a_trial_was_given(count):
    np.ones((2, 2)) @ np.ones((2, 2))  # its BLAS is there to be asked
    with threads(None):
        before = counts()
    with threads(count):
        inside = counts()
    assert inside == ((1, 1, {1}) if count == 1 else before)
    assert counts()[:2] == before[:2]
