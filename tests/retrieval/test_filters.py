import numpy as np
import pyarrow as pa
import pytest

from raysys.errors import SearchError
from raysys.retrieval.filters import Attributes

ITEMS = pa.table(
    {
        "item_num": pa.array(range(5), pa.int32()),
        "item_id": ["a", "b|c", "ü", "d", "e"],
        "genres": ["Comedy|Drama", "Drama", None, "Sci-Fi", ""],
        "tags": [["x", "y"], ["y"], [], None, ["z"]],
        "year": pa.array([1990, 1995, None, 2001, 1995], pa.int64()),
        "price": [1.5, 2.0, 3.0, None, 2.0],
        "new": [True, False, None, True, False],
    }
)


@pytest.mark.parametrize(
    ("allow", "wanted"),
    [
        ({"genres": "Drama"}, [0, 1]),
        ({"genres": ["Comedy", "Sci-Fi"]}, [0, 3]),
        ({"genres": "Drama", "year": {"max": 1992}}, [0]),
        ({"tags": "y"}, [0, 1]),
        ({"year": 1995}, [1, 4]),
        ({"year": {"min": 1995}}, [1, 3, 4]),
        ({"price": 2}, [1, 4]),
        ({"price": {"min": 1.6, "max": 2.5}}, [1, 4]),
        ({"new": True}, [0, 3]),
        ({"item_id": ["b|c", "ü"]}, [1, 2]),
        ({"genres": []}, []),
        ({"genres": "Western"}, []),
    ],
)
def test_allow_keeps_items_that_meet_every_condition(allow, wanted):
    attributes = Attributes(ITEMS)
    assert np.flatnonzero(attributes.mask(allow, None)).tolist() == wanted
    rest = np.setdiff1d(np.arange(5), wanted)
    if len(allow) == 1:
        assert np.flatnonzero(attributes.mask(None, allow)).tolist() == rest.tolist()


def test_deny_drops_items_that_meet_any_condition():
    mask = Attributes(ITEMS).mask(None, {"genres": "Drama", "year": {"min": 2000}})
    assert np.flatnonzero(mask).tolist() == [2, 4]
    assert Attributes(ITEMS).mask(None, {}) is None


@pytest.mark.parametrize(
    ("allow", "message"),
    [
        ({"genre": "Drama"}, r"no attribute 'genre'.*did you mean 'genres'"),
        ({"year": {"from": 3}}, "is no range"),
        ({"year": {"min": "3"}}, "is no range"),
        ({"genres": {"min": 3}}, "a range needs numbers"),
        ({"item_num": 3}, "no attribute 'item_num'"),
    ],
)
def test_conditions_that_cannot_be_used(allow, message):
    with pytest.raises(SearchError, match=message):
        Attributes(ITEMS).mask(allow, None)


def test_large_strings_are_text_too():
    items = ITEMS.set_column(2, "genres", ITEMS["genres"].cast(pa.large_string()))
    assert Attributes(items).mask({"genres": "Drama"}, None).sum() == 2
