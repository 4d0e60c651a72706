import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels, default_liked
from raysys.errors import SearchError
from raysys.search.ids import Ids
from raysys.search.items import ItemTable
from raysys.search.query import ProfileEntry, UnknownUserError
from raysys.search.users import UserStore, default_level, entry_level, posted_cells, seen_items

STARS = RatingLevels(
    names=("1", "2", "3", "4", "5"),
    values=(1.0, 2.0, 3.0, 4.0, 5.0),
    liked=default_liked([1, 2, 3, 4, 5]),
)
STARS_AND_UNRATED = RatingLevels(
    names=("1", "5", "unrated"), values=(1.0, 5.0, None), liked=(False, True, False)
)
EVENTS = RatingLevels(names=("return", "purchase"), values=(None, None), liked=(False, True))
BINS = RatingLevels(names=("low", "high"), values=(10.0, 90.0), liked=(False, True), edges=(50.0,))
SCALED = dataclasses.replace(BINS, scale=(5.0, 98.5))
ONE_RATING = RatingLevels(("consumed",), (None,), (True,), scale=(1.0, 1.0))
RATED = RatingLevels(("rated", "unrated"), (None, None), (True, False), scale=(5.0, 5.0))
TENTHS = RatingLevels(("0.1", "4.1"), tuple(map(float, np.float32([0.1, 4.1]))), (False, True))
ITEMS = ItemTable(["a", "b", "42"], ["A", None, "C"])


@pytest.mark.parametrize(
    ("levels", "entry", "expected"),
    [
        (STARS, ProfileEntry(item_id="a", rating=5), 4),
        (STARS, ProfileEntry(item_id="a", rating=2.4), 1),
        (STARS, ProfileEntry(item_id="a"), 3),  # the lowest liked rating
        (STARS_AND_UNRATED, ProfileEntry(item_id="a"), 2),
        (EVENTS, ProfileEntry(item_id="a"), 1),  # the first liked event
        (EVENTS, ProfileEntry(item_id="a", event="return"), 0),
        (BINS, ProfileEntry(item_id="a", rating=1e6), 1),  # a build of before: outer bins are open
        (SCALED, ProfileEntry(item_id="a", rating=98.5), 1),
        (SCALED, ProfileEntry(item_id="a", rating=5), 0),
        (TENTHS, ProfileEntry(item_id="a", rating=4.1), 1),
        (TENTHS, ProfileEntry(item_id="a", rating=0.1), 0),
        (ONE_RATING, ProfileEntry(item_id="a", rating=1), 0),
        (RATED, ProfileEntry(item_id="a", rating=5), 0),
        (RATED, ProfileEntry(item_id="a"), 1),
        (RATED, ProfileEntry(item_id="a", event="rated"), 0),
    ],
)
def test_level_of_an_entry(levels, entry, expected):
    assert entry_level(entry, levels) == expected


@pytest.mark.parametrize(
    ("levels", "entry", "words"),
    [
        (STARS, ProfileEntry(item_id="a", rating=6), ["'a'", "rating=6", "1 to 5"]),
        (SCALED, ProfileEntry(item_id="a", rating=99), ["rating=99", "5 to 98.5"]),
        (SCALED, ProfileEntry(item_id="a", rating=-1e9), ["rating=-1e+09", "5 to 98.5"]),
        (STARS, ProfileEntry(item_id="a", rating=1e300), ["rating=1e+300", "1 to 5"]),
        (
            ONE_RATING,
            ProfileEntry(item_id="a", rating=3),
            ["rating=3", "off the scale: expected 1"],
        ),
        (
            EVENTS,
            ProfileEntry(item_id="a", rating=3),
            ["rating=3", "no scale of ratings", "'purchase'"],
        ),
        (EVENTS, ProfileEntry(item_id="a", event="view"), ["'view'", "'return', 'purchase'"]),
    ],
)
def test_entries_that_no_level_fits(levels, entry, words):
    with pytest.raises(SearchError) as caught:
        entry_level(entry, levels)
    assert all(word in str(caught.value) for word in words)


def test_without_any_liked_level_the_first_counts():
    assert default_level(RatingLevels(names=("x",), values=(None,), liked=(False,))) == 0


def test_posted_profiles_are_sorted_and_merged():
    entries = [
        ProfileEntry(item_id="b", rating=1, timestamp=30),
        ProfileEntry(item_id="new"),
        ProfileEntry(item_id="a", rating=5),  # now
        ProfileEntry(item_id="b", rating=1, timestamp=10),
        ProfileEntry(item_id="a", rating=4, timestamp=20),
        ProfileEntry(item_id="new", rating=2),
    ]
    cells, unknown = posted_cells(entries, items=ITEMS, levels=STARS, now=100)
    assert unknown == ["new"]
    np.testing.assert_array_equal(cells.timestamp, [20, 30, 100])
    np.testing.assert_array_equal(cells.item_num, [0, 1, 0])
    np.testing.assert_array_equal(cells.level, [3, 0, 4])
    np.testing.assert_array_equal(cells.offsets, [0, 3])


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "42", "?"]), st.integers(1, 5))))
def test_every_entry_is_a_cell_or_unknown(pairs):
    entries = [ProfileEntry(item_id=item, rating=rating) for item, rating in pairs]
    cells, unknown = posted_cells(entries, items=ITEMS, levels=STARS, now=0)
    back = {(ITEMS.item_ids[n], v + 1) for n, v in zip(cells.item_num, cells.level, strict=True)}
    assert back == {(item, rating) for item, rating in pairs if item != "?"}
    assert cells.n_cells == len(back)
    assert unknown == (["?"] if any(item == "?" for item, _ in pairs) else [])


def test_stored_users():
    cells = Cells.from_lists([[(0, 1), (9, 2)], [], [(2, 4)]])
    store = UserStore(Ids.of(pa.chunked_array([["ann", "bo", "cy"]])), cells)
    np.testing.assert_array_equal(store.history("ann").item_num, [0, 9])
    assert store.history("bo").n_cells == 0
    with pytest.raises(UnknownUserError, match=r"'dee'.*3 known users"):
        store.history("dee")


def test_a_stored_history_may_be_written_to_as_any_other():
    cells = Cells.from_lists([[(0, 1), (9, 2)]])
    for array in vars(cells).values():
        array.setflags(write=False)  # as of a mapped file
    history = UserStore(Ids.of(pa.chunked_array([["ann"]])), cells).history("ann")
    assert all(array.flags.writeable for array in vars(history).values())


def test_seen_items_per_user():
    seen = seen_items(Cells.from_lists([[(2, 0), (1, 0)], [], [(2, 0)]]), ITEMS)
    assert [nums.tolist() for nums in seen] == [[2, 1], [], [2]]
    assert seen_items(Cells.from_lists([]), ITEMS) == []
    newer = ItemTable(["a", "b", "b"], [None] * 3, n_built=2)
    [nums] = seen_items(Cells.from_lists([[(1, 0)]]), newer)
    assert nums.tolist() == [1, 2]
