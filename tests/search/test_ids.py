"""Ids in memory and mapped, and the users that an index build keeps."""

import numpy as np
import pyarrow as pa
import pytest

from raysys.data.cells import Cells
from raysys.data.profiles import Profiles
from raysys.search.ids import Ids
from raysys.search.items import ItemTable
from raysys.search.query import UnknownUserError
from raysys.search.users import UserStore
from raysys.store.builds import Workspace
from raysys.store.kinds import Facts
from tests.support.planting import plant, plant_profiles
from tests.support.runs import STARS, items_of, random_cells, user_id, vectors_run

TEXTS = ["b", "a", "ü" * 40, "a", "", "0"]


def test_every_id_is_found_and_of_equal_ones_the_first():
    ids = Ids.of(pa.chunked_array([TEXTS[:2], TEXTS[2:]]))
    assert {text: ids[text] for text in TEXTS} == {"b": 0, "a": 1, "ü" * 40: 2, "": 4, "0": 5}
    assert ids.get("c") is None
    assert "c" not in ids
    assert len(ids) == 6
    with pytest.raises(KeyError):
        ids["c"]


def test_equal_hashes_are_told_apart_by_text():
    same = np.full(3, Ids.of(pa.chunked_array([["a"]]))._hashes[0])
    ids = Ids(pa.chunked_array([["x", "y", "a"]]), same, np.array([0, 1, 2], dtype=np.int32))
    assert ids["a"] == 2
    assert ids.get("x") is None  # its own hash is another


def test_saved_ids_are_mapped_with_what_lies_beside(tmp_path):
    ws = Workspace(str(tmp_path))
    table = pa.table({"item_id": TEXTS, "title": ["B", None, "U", "A", "", "O"]})

    def write(draft):
        Ids.of(table["item_id"]).save(draft, "names/items", table)
        return Facts()

    build = plant(ws, "index", write)
    ids, found = Ids.open(build, "names/items")
    assert found.to_pydict() == table.to_pydict()
    assert [ids[text] for text in ("b", "a", "0")] == [0, 1, 5]
    items = ItemTable(found["item_id"], found["title"], built=ids)
    assert (items.item_ids[2], items.titles[1], items.titles[0]) == ("ü" * 40, None, "B")


def test_users_of_an_index_build_have_their_cells(tmp_path):
    ws, _ = vectors_run(tmp_path)
    cells = random_cells(20, 60, STARS.n_levels)
    ids = [user_id(n) for n in range(20)]
    profiles = Profiles.open(plant_profiles(ws, cells, STARS, items_of(60), user_ids=ids))

    def write(draft):
        UserStore.save(profiles, draft)
        return Facts()

    store = UserStore.open(plant(ws, "index", write, config={"users": True}))
    kept = UserStore.load(profiles)
    assert len(store) == 20
    for user in range(20):
        one, other = store.history(user_id(user)), kept.history(user_id(user))
        for name in ("offsets", "item_num", "level", "timestamp"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert one.n_cells == cells.counts[user]
    assert isinstance(one, Cells)
    with pytest.raises(UnknownUserError, match="not among the 20 known"):
        store.history("nobody")
    assert UserStore.open(ws.current("codes")) is None
