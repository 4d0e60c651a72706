"""Who has what, once a (user, item) pair: what all simple rankers see of a log."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from raysys.data.cells import Cells


def presence(cells: Cells, n_items: int) -> sparse.csr_matrix:
    """Return the float32 CSR matrix [U, N] of ones where a user has an item of the catalogue."""
    inside = cells.take(cells.item_num < n_items)
    matrix = sparse.csr_matrix(
        (np.ones(inside.n_cells, dtype=np.float32), inside.item_num, inside.offsets),
        shape=(cells.n_users, n_items),
    )
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def item_counts(cells: Cells, n_items: int) -> NDArray[np.int64]:
    """Return how many users have each item of the catalogue, int64 [N]."""
    return np.bincount(presence(cells, n_items).indices, minlength=n_items).astype(np.int64)
