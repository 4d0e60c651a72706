import dataclasses

import numpy as np
import torch

from raysys.data.batches import ragged
from raysys.data.cells import Cells


def test_rows_and_counts_follow_the_cells():
    batch = ragged(Cells.from_lists([[(4, 1), (2, 0)], [], [(1, 2)]]))
    assert batch.n_rows == 3
    assert batch.counts.tolist() == [2, 0, 1]
    assert batch.rows.tolist() == [0, 0, 2]
    assert batch.item_num.tolist() == [4, 2, 1]
    assert batch.level.dtype == torch.int64
    assert batch.age is None


def test_ages_count_back_from_the_reference_and_never_below_zero():
    cells = Cells.from_lists([[(0, 0), (1, 0)]])
    cells = dataclasses.replace(cells, timestamp=np.array([100, 160], dtype=np.int64))
    assert ragged(cells, reference_time=150).age.tolist() == [50.0, 0.0]


def test_no_users_and_no_cells_work():
    empty = ragged(Cells.from_lists([]))
    assert empty.n_rows == 0
    assert len(empty.rows) == 0
