"""Threads of compiled kernels: numba and torch share one OpenMP, whose count either may set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import scipy.linalg  # noqa: F401  numba calls its LAPACK, which must be there to be limited
import torch
from threadpoolctl import threadpool_limits


def follow_torch() -> None:
    """Let numba's parallel kernels use as many threads as torch does, and torch keep its count.

    The first parallel kernel otherwise sets the count of both to the machine's cores.
    """
    count = torch.get_num_threads()
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(count)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch, numba and BLAS use so many threads each in the block; None: as many as they do.

    Sums over threads round by their number, so it is part of what makes the same digits.
    """
    before = torch.get_num_threads()
    with threadpool_limits(count, user_api="blas"):
        torch.set_num_threads(count or before)
        follow_torch()
        try:
            yield
        finally:
            torch.set_num_threads(before)
            follow_torch()


@contextmanager
def blas_on_one_thread() -> Iterator[None]:
    """Let NumPy's and SciPy's BLAS use one thread in the block, for parallel kernels that call it.

    OpenBLAS starts threads of its own beyond some size; within a parallel loop it warns in every
    call that it may hang.
    """
    with threadpool_limits(1, user_api="blas"):
        yield


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """Let torch use one thread in the block, numba's kernels as many as torch had.

    A matrix product over several threads rounds its last bit by their number. Work that must give
    the same bytes in any process does its products here, and the rest in a parallel kernel.
    """
    follow_torch()
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
