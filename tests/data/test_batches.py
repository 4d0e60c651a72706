import dataclasses

import numpy as np
import pytest
import torch

from raysys.data import batches
from raysys.data.batches import Resident, ragged
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


CPU = torch.device("cpu")


@pytest.mark.parametrize("reference", [None, 150])
def test_a_resident_batch_is_that_of_the_same_users(reference):
    lists = [[(4, 1), (2, 0)], [], [(1, 2), (0, 0), (5, 1)], [(2, 2)]]
    cells = Cells.from_lists(lists)
    cells = dataclasses.replace(cells, timestamp=np.arange(100, 220, 20, dtype=np.int64))
    resident = Resident(cells, CPU, reference_time=reference)
    resident.left = torch.arange(12.0).view(6, 2)
    for rows in ([2, 0], [1], [3, 1, 2, 0], []):
        rows = np.array(rows, dtype=np.int64)
        found = resident.users(rows)
        wanted = ragged(cells.users(rows), reference_time=reference)
        for name in ("offsets", "item_num", "level", "age"):
            one, other = getattr(found, name), getattr(wanted, name)
            assert (one is None and other is None) or torch.equal(one, other)
        places = [at for row in rows for at in range(*cells.offsets[row : row + 2])]
        assert found.left.tolist() == [[2.0 * at, 2.0 * at + 1] for at in places]


@pytest.mark.parametrize(
    ("lists", "distinct"),
    [
        ([], True),
        ([[(1, 0)], [(1, 0)]], True),
        ([[(1, 0), (2, 1)], [(1, 0), (2, 0), (1, 1)]], False),
    ],
)
@pytest.mark.parametrize("block", [1, 2, 1 << 22])
def test_whether_a_profile_holds_an_item_twice_is_known(lists, distinct, block, monkeypatch):
    monkeypatch.setattr(batches, "_BLOCK_CELLS", block)
    resident = Resident(Cells.from_lists(lists), CPU)
    assert resident.users(np.arange(len(lists))).distinct is distinct
    assert not ragged(Cells.from_lists(lists)).distinct
