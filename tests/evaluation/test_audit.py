"""Every kind of leak is refused with the offending rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from raysys.data.cells import Cells
from raysys.data.schema import Window, period_windows
from raysys.errors import DataError
from raysys.evaluation import audit

CUTOFFS = {"val": 100, "test": 200}
TEST = period_windows("temporal", "test")


@dataclasses.dataclass(frozen=True)
class Fitted:
    n_items: int = 3
    fitted_windows: tuple[int, ...] = (Window.FIT, Window.VAL)
    fitted_until: int | None = 200


def names(prefix):
    return lambda num: f"{prefix}{num}"


def cells(rows):
    """One user per row list of (item, time, window)."""
    table = np.array([cell for row in rows for cell in row], dtype=np.int64).reshape(-1, 3)
    return Cells(
        user_num=np.arange(len(rows), dtype=np.int32),
        offsets=np.cumsum([0, *map(len, rows)]).astype(np.int64),
        item_num=table[:, 0].astype(np.int32),
        level=np.zeros(len(table), dtype=np.uint8),
        timestamp=table[:, 1],
        window=table[:, 2].astype(np.uint8),
    )


def check_windows(rows, period="test", cutoffs=CUTOFFS):
    audit.check_windows(
        cells(rows),
        period=period,
        windows=period_windows("temporal", period),
        cutoffs=cutoffs,
        user=names("u"),
        item=names("i"),
    )


def test_clean_cells_pass():
    check_windows([[(0, 10, 0), (1, 150, 1), (2, 200, 2)]])
    check_windows([[(0, 10, 0), (1, 150, 1), (2, 200, 2)]], period="val")
    check_windows([[(0, 500, 0), (2, 1, 2)]], cutoffs=None)


def test_a_target_older_than_the_cutoff():
    with pytest.raises(
        DataError,
        match=r"1 targets older than the test cut-off 200: user u1 "
        r"item i4 time 199",
    ):
        check_windows([[(0, 10, 0)], [(4, 199, 2)]])


def test_history_past_the_cutoff():
    with pytest.raises(DataError, match=r"history or training .* user u0 item i0 time 200"):
        check_windows([[(0, 200, 0)]])


def test_a_history_item_newer_than_its_target():
    history, targets = cells([[(0, 5, 0), (1, 9, 0)]]), cells([[(2, 7, 2)]])
    with pytest.raises(DataError, match="newer than their targets: user u0 item i1 time 9"):
        audit.check_order(history, targets, user=names("u"), item=names("i"))
    audit.check_order(history.take(np.array([True, False])), targets)


def test_a_pair_in_history_and_targets():
    history, targets = cells([[(0, 5, 0)], [(1, 5, 0)]]), cells([[(1, 7, 2)], [(1, 8, 2)]])
    with pytest.raises(DataError, match=r"1 \(user, item\) pairs .* user u1 item i1 time 8"):
        audit.check_pairs(history, targets, user=names("u"), item=names("i"))


def test_users_in_two_shards():
    shards = [("shard-0", np.array([0, 1], np.int32)), ("shard-1", np.array([1, 2], np.int32))]
    with pytest.raises(DataError, match=r"in shard-1: u1 \(user_num 1, also in shard-0\)"):
        audit.check_shards(shards, user=names("u"))
    with pytest.raises(DataError, match="stand twice"):
        audit.check_shards([("shard-0", np.array([3, 3], np.int32))])
    audit.check_shards([("a", np.array([0], np.int32)), ("b", np.array([1], np.int32))])


def items(first_seen, ids=("a", "b", "c", "d")):
    return pa.table(
        {
            "item_num": pa.array(range(len(ids)), pa.int32()),
            "item_id": ids,
            "first_seen": first_seen,
        }
    )


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        ([10, 120, 130, 250], "1 items of the val catalogue .* 'b' \\(first seen 120\\)"),
        ([10, 20, 200, 250], "1 items of the test catalogue .* cut-off 200: 'c'"),
        ([20, 10, 130, 250], "does not follow .*\\(20, 'a'\\) has number 0, \\(10, 'b'\\) has 1"),
    ],
)
def test_catalogues_that_know_the_future(seen, message):
    catalogue = {"val": 2, "test": 3, "all": 4}
    audit.check_catalogue(items([10, 20, 130, 250]), catalogue=catalogue, cutoffs=CUTOFFS)
    audit.check_catalogue(items(seen), catalogue=catalogue, cutoffs=None)
    with pytest.raises(DataError, match=message):
        audit.check_catalogue(items(seen), catalogue=catalogue, cutoffs=CUTOFFS)


def test_equal_times_are_ordered_by_id():
    catalogue = {"val": 2, "test": 3, "all": 4}
    table = items([10, 10, 130, 250], ids=("b", "a", "c", "d"))
    with pytest.raises(DataError, match="does not follow"):
        audit.check_catalogue(table, catalogue=catalogue, cutoffs=CUTOFFS)


def test_appended_logs_keep_their_numbers(caplog):
    catalogue = {"val": 2, "test": 3, "all": 4}
    table = items([20, 120, 130, 15])
    audit.check_catalogue(table, catalogue=catalogue, cutoffs=CUTOFFS, numbers_kept=True)
    assert "period=val items_first_seen_later=1" in caplog.text


def test_a_catalogue_out_of_order():
    table = items([1, 2, 3, 4]).take([0, 2, 1, 3])
    with pytest.raises(DataError, match="row 1 of the catalogue holds item_num 2"):
        audit.check_catalogue(table, catalogue={}, cutoffs=None)


def test_popularity_counted_past_the_fit_window():
    audit.check_popularity(np.array([2, 0]), np.array([2, 0]), ids=["a", "b"])
    with pytest.raises(DataError, match=r"not counted in the fit window: 'b' \(5, not 1\)"):
        audit.check_popularity(np.array([2, 5]), np.array([2, 1]), ids=["a", "b"])


def check_model(period="test", **facts):
    audit.check_model(
        Fitted(**facts),
        period=period,
        windows=period_windows("temporal", period),
        cutoffs=CUTOFFS,
        n_items=3,
    )


def test_models_that_saw_too_much():
    check_model()
    check_model(fitted_windows=(Window.FIT,), fitted_until=100)
    with pytest.raises(DataError, match="until 200, period=val is evaluated from cut-off 100"):
        check_model(period="val")
    with pytest.raises(DataError, match="fitted on windows VAL, period=val assumes FIT"):
        check_model(period="val", fitted_until=None)
    with pytest.raises(DataError, match="fitted on windows TEST"):
        check_model(fitted_windows=(0, 1, 2), fitted_until=None)
    with pytest.raises(DataError, match="fitted on windows TEST, TEST_IN, VAL_IN"):
        check_model(fitted_windows=tuple(Window), fitted_until=None)
    with pytest.raises(DataError, match="knows 4 items, the catalogue of period=test holds 3"):
        audit.check_model(
            Fitted(n_items=4), period="test", windows=TEST, cutoffs=CUTOFFS, n_items=3
        )


def test_messages_name_at_most_five_rows():
    bad = cells([[(i, 300, 0) for i in range(9)]])
    with pytest.raises(DataError) as caught:
        audit.check_windows(bad, period="test", windows=TEST, cutoffs=CUTOFFS)
    assert "9 history or training cells" in str(caught.value)
    assert str(caught.value).count("user 0") == 5
