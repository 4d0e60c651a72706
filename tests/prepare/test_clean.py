import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.data.schema import INTERACTION_SCHEMA
from raysys.errors import ConfigError
from raysys.log.columns import ColumnsConfig, map_columns
from raysys.log.formats.contract import Chunk
from raysys.prepare.clean import (
    N_BUCKETS,
    EventRules,
    LogTraits,
    clean,
    partition,
)
from raysys.prepare.merge import merge

NAMES = ("user_id", "item_id", "rating", "timestamp", "event")
RATED = LogTraits(has_ratings=True, has_events=False, has_time=True, has_folds=False)
EVENTS = LogTraits(has_ratings=False, has_events=True, has_time=True, has_folds=False)


def cleaned(**columns):
    table = pa.table(columns)
    return clean(Chunk(table, 0, []), file="log", columns={n: n for n in columns})


def log_of(rows):
    return pa.Table.from_pylist(
        [dict(zip(NAMES, row, strict=True)) for row in rows], schema=INTERACTION_SCHEMA
    )


def test_rows_that_break_a_rule_keep_their_place_and_reason():
    done = cleaned(
        user_id=["a", None, "b", "c", "d", ""],
        item_id=["x", "x", None, "y", "y", "y"],
        rating=[1.0, 1.0, 1.0, float("nan"), 2.0, 3.0],
        timestamp=[1, 2, 3, 4, -5, 6],
    )
    assert done.rows["user_id"].to_pylist() == ["a"]
    assert done.bad["reason"].to_pylist() == [
        "missing user",
        "missing item",
        "rating is not a number",
        "absurd timestamp",
        "missing user",
    ]
    assert done.bad["row"].to_pylist() == [1, 2, 3, 4, 5]
    assert set(done.bad["file"].to_pylist()) == {"log"}


def test_ratings_as_text_and_out_of_range():
    table = pa.table({"user_id": list("abcd"), "item_id": list("xxxx")})
    table = table.append_column("rating", pa.array([" 4.5", "ten", None, "9"]))
    done = clean(
        Chunk(table, 0, []),
        file="log",
        columns={n: n for n in ("user_id", "item_id", "rating")},
        rating_range=(1.0, 5.0),
    )
    assert done.rows["rating"].to_pylist() == [4.5, None]
    assert done.bad["reason"].to_pylist() == ["rating is not a number", "rating out of range"]


def test_ids_that_are_no_whole_numbers_are_set_aside_row_by_row():
    done = cleaned(
        user_id=pa.array([1.0, 2.5, float("inf"), None, 2.0**53]),
        item_id=pa.array(["7.00", "7.00", "7.00", "7.00", "7.50"]).cast(pa.decimal128(9, 2)),
    )
    assert done.rows.select(["user_id", "item_id"]).to_pylist() == [
        {"user_id": "1", "item_id": "7"}
    ]
    assert done.bad.select(["reason", "row", "user_id"]).to_pylist() == [
        {"reason": "user id is not a whole number", "row": 1, "user_id": "2.5"},
        {"reason": "user id is not a whole number", "row": 2, "user_id": "inf"},
        {"reason": "missing user", "row": 3, "user_id": None},
        {"reason": "user id beyond 2^53 as a float", "row": 4, "user_id": "9007199254740992.0"},
    ]


def test_a_wrong_column_names_the_nearest():
    with pytest.raises(ConfigError, match=r"columns.user='usr' .* which has user, item; .*'user'"):
        map_columns(ColumnsConfig(user="usr", item="item"), {"user": "", "item": ""}, source="f")


def test_optional_columns_may_be_absent():
    mapped = map_columns(ColumnsConfig(), {"user_id": "", "item_id": "", "x": ""}, source="f")
    assert mapped.columns == {"user_id": "user_id", "item_id": "item_id"}
    assert mapped.left_out == {"x": "not asked for"}


def test_a_rated_log_keeps_one_rating_and_one_unrated_row_of_a_pair():
    rows = log_of(
        [
            ("u", "i", 3.0, 5, None),
            ("u", "i", 4.0, 4, None),
            ("u", "i", None, 3, None),
            ("u", "i", None, 6, None),
        ]
    )
    first = merge([rows], traits=RATED, keep="first")
    assert first.rows["timestamp"].to_pylist() == [3, 4]
    assert first.n_duplicates == 2
    last = merge([rows], traits=RATED, keep="last")
    assert last.rows["timestamp"].to_pylist() == [5, 6]


def test_an_event_log_keeps_one_row_per_event():
    rows = log_of([("u", "i", None, t, e) for t, e in ((1, "view"), (2, "buy"), (3, "view"))])
    merged = merge([rows], traits=EVENTS, keep="first")
    assert merged.rows["event"].to_pylist() == ["view", "buy"]


def test_rows_without_a_time_are_set_aside_where_others_have_one():
    rows = log_of([("u", "i", 3.0, None, None), ("u", "j", 3.0, 7, None)])
    merged = merge([rows], traits=RATED, keep="first")
    assert merged.rows["item_id"].to_pylist() == ["j"]
    assert merged.bad["reason"].to_pylist() == ["missing timestamp"]


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "ü x", "long user id"]),
        st.sampled_from(["1", "2", "é"]),
        st.sampled_from([1.0, 2.0, None]),
        st.integers(0, 3),
        st.sampled_from(["view", "buy", None]),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, traits=st.sampled_from([RATED, EVENTS]), shuffle=st.randoms())
def test_merging_ignores_row_order_and_loses_nothing(rows, traits, shuffle):
    merged = merge([log_of(rows)], traits=traits, keep="first")
    shuffled = list(rows)
    shuffle.shuffle(shuffled)
    cut = len(rows) // 2
    again = merge([log_of(shuffled[:cut]), log_of(shuffled[cut:])], traits=traits, keep="first")
    assert merged.rows.equals(again.rows)
    assert len(merged.rows) + merged.n_duplicates == len(rows)
    kinds = {(r[0], r[1], (r[2] is not None) if traits is RATED else r[4]): None for r in rows}
    assert len(merged.rows) == len(kinds)
    time = merged.rows["timestamp"].to_numpy()
    user = merged.rows["user_id"].to_numpy(zero_copy_only=False)
    assert all((user[1:] != user[:-1]) | (np.diff(time) >= 0))


@settings(max_examples=30, deadline=None)
@given(rows=ROWS)
def test_buckets_hold_every_row_once_and_users_whole(rows):
    table = log_of(rows)
    batches = partition(table)
    assert len(batches) == N_BUCKETS
    together = pa.Table.from_batches(batches)
    order = [(name, "ascending") for name in NAMES]
    assert together.sort_by(order).equals(table.sort_by(order))
    homes = {}
    for number, batch in enumerate(batches):
        for user in batch["user_id"].to_pylist():
            assert homes.setdefault(user, number) == number


def test_an_empty_chunk_still_gives_every_bucket():
    assert len(partition(INTERACTION_SCHEMA.empty_table())) == N_BUCKETS


def test_events_are_accepted_ignored_or_set_aside():
    table = pa.table({"user_id": list("abcd"), "item_id": list("xxxx")})
    table = table.append_column("event", pa.array(["view", "buy", "tick", None]))
    done = clean(
        Chunk(table, 0, []),
        file="log",
        columns={n: n for n in table.column_names},
        events=EventRules(accepted=("view",), ignored=("tick",)),
    )
    assert done.rows["event"].to_pylist() == ["view"]
    assert done.bad["reason"].to_pylist() == ["unknown event", "unknown event"]
    assert done.n_ignored == 1


def test_counts_of_repeats_add_up_over_merges():
    rows = log_of([("u", "i", 3.0, t, None) for t in (1, 2, 3)])
    once = merge([rows], traits=RATED, keep="count").rows
    assert (once["timestamp"].to_pylist(), once["count"].to_pylist()) == ([1], [3])
    plain = once.cast(INTERACTION_SCHEMA.append(pa.field("count", pa.int64())))
    again = merge([plain, log_of([("u", "i", 4.0, 9, None)])], traits=RATED, keep="count").rows
    assert again["count"].to_pylist() == [4]


def test_a_row_without_a_time_among_others_keeps_its_place():
    done = cleaned(user_id=["a", "b"], item_id=["x", "y"], timestamp=[None, 7])
    assert done.bad.select(["reason", "file", "row"]).to_pylist() == [
        {"reason": "missing timestamp", "file": "log", "row": 0}
    ]
