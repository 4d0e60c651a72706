"""The paper's own ways to compare codes, kept to compare with; the index compares asymmetrically.

    N items, Q queries, S atoms, D dims, n non-zeros, K = top_k

Source: Kasalicky et al., RecSys 2025 (see `compressor.model`). `sparse` is the cosine of two codes
as vectors of S entries, `reconstructed` that of what they decode to: with the kernel matrix
K = Dict Dict^T it is s_q^T K s_i over both lengths. K is never formed: K s_q is computed once a
query, by decoding s_q.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from raysys.config import require
from raysys.data.arrays import Floats

MODES = ("sparse", "reconstructed")
_BLOCK = 64
_LEAST = 1e-12

Sparse = tuple[NDArray[Any], Floats]
"""Atoms [M, n] and values [M, n] of some rows."""


def search(
    mode: str, items: Sparse, queries: Sparse, dictionary: Floats, *, top_k: int
) -> tuple[NDArray[np.int32], Floats]:
    """Return the item numbers and cosines [Q, K] of the items nearest to each query, best first.

    Args:
        mode: one of MODES.
        items: of the N items.
        queries: of the Q queries.
        dictionary: [S, D].
        top_k: K, at most N.
    """
    require(mode in MODES, "mode", mode, " or ".join(MODES))
    stored = _matrix(items, len(dictionary))
    if mode == "sparse":
        lengths = np.linalg.norm(items[1], axis=1)
        table = _matrix(queries, len(dictionary)).toarray()
        norms = np.linalg.norm(table, axis=1)
    else:
        lengths = np.linalg.norm(decode(items, dictionary), axis=1)
        wanted = decode(queries, dictionary)
        table, norms = wanted @ dictionary.T, np.linalg.norm(wanted, axis=1)
    table /= np.maximum(norms, _LEAST)[:, None]
    nums = np.empty((len(table), top_k), dtype=np.int32)
    scores = np.empty((len(table), top_k), dtype=np.float32)
    for start in range(0, len(table), _BLOCK):
        part = slice(start, start + _BLOCK)
        found = (stored @ table[part].T).T / np.maximum(lengths, _LEAST)
        nums[part] = np.argsort(-found, axis=1, kind="stable")[:, :top_k]
        scores[part] = np.take_along_axis(found, nums[part].astype(np.int64), axis=1)
    return nums, scores


def decode(codes: Sparse, dictionary: Floats) -> Floats:
    """Return the reconstructions [M, D] of codes."""
    decoded: Floats = _matrix(codes, len(dictionary)) @ dictionary
    return decoded


def _matrix(codes: Sparse, n_atoms: int) -> sparse.csr_array:
    """Return codes as a matrix [M, S]."""
    atoms, values = codes
    ends = np.arange(len(atoms) + 1) * atoms.shape[1]
    return sparse.csr_array((values.ravel(), atoms.ravel(), ends), shape=(len(atoms), n_atoms))
