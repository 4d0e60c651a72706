import pytest

from raysys.errors import UnknownItemError
from raysys.search.items import ItemTable

ITEMS = ItemTable(["a", "b", "42"], ["A", None, "C"])


def test_items_by_id():
    assert ITEMS.num("42") == 2
    with pytest.raises(UnknownItemError, match=r"'x'.*3 items"):
        ITEMS.num("x")


def test_deleted_and_replaced_items_are_found_as_they_should_be():
    plain = ItemTable(["a", "b", "c", "b", "n"], [None] * 5, n_built=3, deleted=["c"])
    assert [plain.find(i) for i in "abcn"] == [0, 3, None, 4]
    assert [plain.in_profile(i) for i in "abcn"] == [0, 3, 2, 4]
    encoded = ItemTable(["a", "b", "b", "n"], [None] * 4, n_built=2, encoded=True)
    assert [encoded.in_profile(i) for i in "abn"] == [0, 1, None]


def test_items_by_title():
    titles = ["Toy Story (1995)", "Toy Story 2 (1999)", "Caffè", "Heat", "heat", None]
    items = ItemTable(list("abcdef"), titles)
    assert items.by_title("toy story 2") == "b"
    assert items.by_title(" CAFFÈ") == "c"
    assert items.by_title("toy story (1995)") == "a"
    with pytest.raises(UnknownItemError, match=r"'Heat' \(item_id d\), 'heat' \(item_id e\)"):
        items.by_title("heat")
    with pytest.raises(UnknownItemError, match="is no item's title"):
        items.by_title("Alien")
