import dataclasses

import numpy as np

from raysys.data.cells import Cells, concat, read_cells


def test_ragged_round_trip_through_parquet(tmp_path):
    import pyarrow.parquet as pq

    cells = Cells.from_lists([[(3, 1), (5, 0)], [], [(2, 2)]])
    pq.write_table(cells.to_table(), tmp_path / "a.parquet")
    back = read_cells([tmp_path / "a.parquet", tmp_path / "a.parquet"])
    both = concat([cells, cells])
    for name in ("user_num", "offsets", "item_num", "level", "timestamp", "window"):
        np.testing.assert_array_equal(getattr(back, name), getattr(both, name))
        assert getattr(back, name).dtype == getattr(cells, name).dtype


def test_take_and_users_keep_runs_together():
    cells = Cells.from_lists([[(3, 1), (5, 0)], [], [(2, 2), (3, 0)]])
    kept = cells.take(cells.item_num == 3)
    np.testing.assert_array_equal(kept.offsets, [0, 1, 1, 2])
    swapped = cells.users(np.array([2, 0]))
    np.testing.assert_array_equal(swapped.item_num, [2, 3, 3, 5])
    np.testing.assert_array_equal(swapped.user_num, [2, 0])
    np.testing.assert_array_equal(cells.rows, [0, 0, 2, 2])


def test_the_end_of_cells_leaves_out_a_few_that_lie_ahead():
    time = np.arange(2000, dtype=np.int64) * 100
    one = Cells.from_lists([[(0, 0)] * 2000])
    assert dataclasses.replace(one, timestamp=time).end == 199_900
    wrong = time.copy()
    wrong[-2:] = 3_800_000_000
    assert dataclasses.replace(one, timestamp=wrong).end == 199_700
    late = np.concatenate([np.zeros(1999, np.int64), [10**9]])
    assert dataclasses.replace(one, timestamp=late).end == 10**9
    made_up = time + 3_800_000_000
    assert dataclasses.replace(one, timestamp=made_up).end == 3_800_199_900
    assert Cells.from_lists([[]]).end == 0
