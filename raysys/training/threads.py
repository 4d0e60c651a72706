"""Threads of compiled kernels: numba and torch share one OpenMP, whose count either may set."""

from __future__ import annotations

import numba
import torch


def follow_torch() -> None:
    """Let numba's parallel kernels use as many threads as torch does, and torch keep its count.

    The first parallel kernel otherwise sets the count of both to the machine's cores.
    """
    count = torch.get_num_threads()
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(count)
