"""Upserts and deletions on top of every kind of index, against an index of the final items."""

import numpy as np
import pyarrow as pa
import pytest

from raysys.errors import SearchError, UnknownItemError
from raysys.index.request import SearchRequest
from raysys.search.changes import Changed, Changes, current_changes, gone_mask
from raysys.store.builds import Workspace
from tests.support.planting import plant, plant_embeddings
from tests.support.worlds import CASES, N_ITEMS, make_index, planted_world

KNOWN = {f"i{num}": num for num in range(N_ITEMS)}


def rows(ids, dim, n_bias, seed=0):
    rng = np.random.default_rng(seed)
    items = pa.table({"item_id": pa.array(ids, pa.string()), "title": [f"T {i}" for i in ids]})
    return items, *(rng.normal(size=(len(ids), w)).astype(np.float32) for w in (dim, n_bias))


@pytest.fixture(scope="module", params=CASES, ids=["-".join(case) for case in CASES])
def case(request):
    kind, similarity = request.param
    index = make_index(kind, similarity)
    vectors, bias = planted_world(similarity)
    changes = Changes.none(index.dim, index.n_bias)
    items, fresh, fresh_bias = rows(["ü1", "i3", "new"], index.dim, index.n_bias)
    fresh[0] = 3 * vectors[7]
    fresh_bias[0] = bias[7]
    changes = changes.upsert(items, fresh, fresh_bias).delete(["i9", "i7"], KNOWN)
    gone = gone_mask(changes, KNOWN, N_ITEMS)
    assert np.flatnonzero(gone).tolist() == [3, 7, 9]
    changed = Changed(index, changes, KNOWN, cosine=similarity == "cosine")
    weights = np.tile(np.float32([1, 0]), (N_ITEMS, 1))[:, : index.n_bias]
    return index, changed, changes, vectors, weights


@pytest.mark.parametrize("top_k", [10, N_ITEMS + 9])
def test_upserted_rows_come_in_by_score_and_gone_ones_never(case, top_k):
    index, changed, changes, vectors, weights = case
    queries, w = vectors[:40:7], weights[:40:7]
    nums, scores = changed.search(SearchRequest(queries, weights=w, top_k=top_k))
    assert not np.isin(nums, [3, 7, 9]).any()
    assert np.all(scores[:, 1:] <= scores[:, :-1])
    assert nums[1, 0] == N_ITEMS  # a query of item 7 finds what lies in its direction
    unit = changes.vectors
    if index.similarity == "cosine":
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    exact = index.score_all(vectors[:40:7], w)
    both = np.concatenate([exact, queries @ unit.T + w @ changes.bias.T], axis=1)
    both[:, [3, 7, 9]] = -np.inf
    if top_k > N_ITEMS:
        wanted = -np.sort(-both, axis=1)[:, :N_ITEMS]
        np.testing.assert_allclose(scores[:, :N_ITEMS], wanted, atol=1e-5)
        assert np.all(nums[:, N_ITEMS:] == -1)
    else:
        last = -np.sort(-both, axis=1)[:, top_k - 1 : top_k]
        assert np.mean(scores >= last - 1e-5) > 0.93


def test_filters_and_exclusions_count_for_both(case):
    _, changed, _, vectors, weights = case
    allow = np.zeros(changed.n_items, dtype=bool)
    allow[[5, 7, N_ITEMS, N_ITEMS + 2]] = True
    query = {"weights": weights[7:8], "top_k": 6, "allow": allow}
    nums, _ = changed.search(SearchRequest(vectors[7:8], **query))
    assert set(nums[0]) == {5, N_ITEMS, N_ITEMS + 2, -1}
    nums, _ = changed.search(SearchRequest(vectors[7:8], exclude=[np.array([5, N_ITEMS])], **query))
    assert set(nums[0]) == {N_ITEMS + 2, -1}
    with pytest.raises(SearchError, match="allow has shape"):
        changed.search(SearchRequest(vectors[:1], top_k=2, allow=allow[:-1]))


def test_a_batch_gives_what_single_queries_give(case):
    _, changed, _, vectors, weights = case
    nums, scores = changed.search(SearchRequest(vectors[:8], weights=weights[:8], top_k=12))
    for q in range(8):
        one = changed.search(
            SearchRequest(vectors[q : q + 1], weights=weights[q : q + 1], top_k=12)
        )
        np.testing.assert_array_equal(one[0][0], nums[q])
        np.testing.assert_array_equal(one[1][0], scores[q])


def test_changes_add_up():
    changes = Changes.none(2, 0).upsert(*rows(["a", "i1"], 2, 0)).delete(["i2", "a"], KNOWN)
    assert (changes.item_ids, changes.deleted) == (["i1"], ("i2",))
    changes = changes.delete(["i1"], KNOWN)
    assert (changes.item_ids, changes.deleted) == ([], ("i2", "i1"))
    changes = changes.upsert(*rows(["i2"], 2, 0, seed=5))
    assert (changes.item_ids, changes.deleted) == (["i2"], ("i1",))
    for gone in ("a", "i1", "nope"):
        with pytest.raises(UnknownItemError, match=gone):
            changes.delete([gone], KNOWN)


def test_saved_changes_belong_to_their_embeddings(tmp_path, caplog):
    workspace = Workspace(str(tmp_path))
    vectors = np.zeros((5, 3), dtype=np.float32)
    first, other = (plant_embeddings(workspace, vectors, config={"n": n}) for n in (1, 2))
    assert current_changes(workspace, first) is None
    changes = Changes.none(3, 1).upsert(*rows(["ü"], 3, 1)).delete(["i4"], KNOWN)
    plant(workspace, "changes", changes.save, inputs=[first])
    back = Changes.open(current_changes(workspace, first))
    assert (back.item_ids, back.deleted) == (["ü"], ("i4",))
    np.testing.assert_array_equal(back.vectors, changes.vectors)
    np.testing.assert_array_equal(back.bias, changes.bias)
    assert current_changes(workspace, other) is None
    assert "changes ignored" in caplog.text
