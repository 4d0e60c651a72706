"""What a sparse autoencoder's step needs on a CPU beside its matrix products.

    B rows, S atoms, n non-zeros per row, D embedding

On a CPU, `topk` took a quarter of a step and the gradients of `embedding_bag` two fifths of it.
Here both are walks over rows that stay in the cache. On other devices torch does the work.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raysys.data.compiled import compiled_with
from raysys.training.threads import follow_torch

_SHIFT = 20  # float32 magnitudes fall into 2048 buckets: the exponent and 3 bits below it
_BUCKETS = 1 << (31 - _SHIFT)


def top_magnitudes(a: Tensor, n: int) -> Tensor:
    """Return the columns int64 [B, n] of the largest |a| of each row, largest first.

    Args:
        a: float32 [B, S], no NaN; equal magnitudes by column.
        n: at most S.
    """
    if a.device.type != "cpu":
        return a.abs().topk(n, dim=1).indices
    assert n <= a.shape[1], (n, a.shape)
    follow_torch()
    found = torch.empty((len(a), n), dtype=torch.int64)
    _select(a.detach().contiguous().numpy().view(np.uint32), found.numpy())
    return found


def sparse_decode(atoms: Tensor, values: Tensor, dictionary: Tensor) -> Tensor:
    """Return the reconstructions [B, D] of codes: atoms int64 [B, n], values float32 [B, n]."""
    if dictionary.device.type != "cpu":
        return F.embedding_bag(atoms, dictionary, per_sample_weights=values, mode="sum")
    found: Tensor = _Decode.apply(atoms.contiguous(), values.contiguous(), dictionary)  # type: ignore[no-untyped-call]
    return found


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, atoms: Tensor, values: Tensor, dictionary: Tensor) -> Tensor:
        ctx.save_for_backward(atoms, values, dictionary)
        return F.embedding_bag(atoms, dictionary, per_sample_weights=values, mode="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        atoms, values, dictionary = ctx.saved_tensors
        by_value, by_atom = torch.empty_like(values), torch.zeros_like(dictionary)
        follow_torch()
        arrays = (gradients[0].contiguous(), atoms, values, dictionary, by_value, by_atom)
        _gradients(*(each.detach().numpy() for each in arrays), torch.get_num_threads())
        return None, by_value, by_atom


@compiled_with(parallel=True)
def _select(bits: Any, found: Any) -> None:
    """Fill `found` [B, n] from the float32 bits [B, S]: a histogram, then a sort of what is left.

    Without the sign, bits of floats order as the magnitudes do.
    """
    n_rows, n_columns = bits.shape
    wanted = found.shape[1]
    for b in numba.prange(n_rows):
        row = bits[b]
        counts = np.zeros(_BUCKETS, dtype=np.int32)
        for s in range(n_columns):
            counts[(row[s] & np.uint32(0x7FFFFFFF)) >> np.uint32(_SHIFT)] += 1
        bucket, kept = _BUCKETS, 0
        while kept < wanted:
            bucket -= 1
            kept += counts[bucket]
        least = np.uint32(bucket) << np.uint32(_SHIFT)
        keys = np.empty(kept + 1, dtype=np.uint64)  # one more: every column is written, few stay
        place = 0
        for s in range(n_columns):
            size = row[s] & np.uint32(0x7FFFFFFF)
            keys[place] = (np.uint64(size ^ np.uint32(0x7FFFFFFF)) << np.uint64(32)) | np.uint64(s)
            place += size >= least
        keys = np.sort(keys[:kept])
        for k in range(wanted):
            found[b, k] = np.int64(keys[k] & np.uint64(0xFFFFFFFF))


@compiled_with(parallel=True, fastmath=True)
def _gradients(
    gradient: Any, atoms: Any, values: Any, dictionary: Any, by_value: Any, by_atom: Any, parts: int
) -> None:
    """Fill the gradients of values [B, n] and atoms [S, D] from that of the output [B, D].

    Threads share rows for the one and columns for the other, so sums have one order always.
    """
    n_rows, n_active = atoms.shape
    dim = dictionary.shape[1]
    for b in numba.prange(n_rows):
        given = gradient[b]
        for k in range(n_active):
            row = dictionary[atoms[b, k]]
            total = np.float32(0.0)
            for d in range(dim):
                total += given[d] * row[d]
            by_value[b, k] = total
    for part in numba.prange(parts):
        low, high = part * dim // parts, (part + 1) * dim // parts
        for b in range(n_rows):
            given = gradient[b, low:high]
            for k in range(n_active):
                row, value = by_atom[atoms[b, k], low:high], values[b, k]
                for d in range(high - low):
                    row[d] += value * given[d]
