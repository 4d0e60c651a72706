"""Item shards: function level on every kind, build level on files."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import BuildError
from raysys.index.files import open_index, open_shard
from raysys.index.request import SearchRequest
from raysys.index.shards import Shards, merge, shard_bounds, shard_of
from raysys.store.builds import Workspace
from tests.support.planting import plant_index
from tests.support.worlds import CASES, N_ITEMS, PER_GROUP, make_index, planted_world


@pytest.fixture(scope="module", params=CASES, ids=["-".join(case) for case in CASES])
def case(request):
    kind, similarity = request.param
    index = make_index(kind, similarity)
    vectors, _ = planted_world(similarity)
    weights = np.tile(np.float32([1, 0]), (N_ITEMS, 1))[:, : index.n_bias]
    bounds = shard_bounds(index, 3)
    assert bounds[0] == 0 < bounds[1] < bounds[2] < bounds[3] == N_ITEMS
    parts = [shard_of(index, a, b) for a, b in itertools.pairwise(bounds)]
    return index, Shards(parts[::-1]), vectors, weights


@pytest.mark.parametrize("top_k", [1, 10, 120, N_ITEMS + 3])
@pytest.mark.parametrize("share", [None, 0.0, 0.003, 0.2, 0.9])
def test_merged_shards_equal_the_whole(case, top_k, share):
    index, shards, vectors, weights = case
    rows = np.arange(0, N_ITEMS, 97)
    query = {"weights": weights[rows], "top_k": top_k}
    if share is not None:
        query["allow"] = np.random.default_rng(2).random(N_ITEMS) < share
        query["exclude"] = [np.arange(q, q + 30) for q in rows]
    whole = index.search(SearchRequest(vectors[rows], **query))
    merged = shards.search(SearchRequest(vectors[rows], **query))
    np.testing.assert_array_equal(merged[0], whole[0])
    np.testing.assert_array_equal(merged[1], whole[1])


def test_an_answer_longer_than_the_probed_lists_falls_back_alike(case):
    index, shards, vectors, weights = case
    query = {"weights": weights[:4], "top_k": PER_GROUP * 9, "effort": 1}
    whole, merged = (
        index.search(SearchRequest(vectors[:4], **query)),
        shards.search(SearchRequest(vectors[:4], **query)),
    )
    np.testing.assert_array_equal(merged[0], whole[0])
    assert np.all(whole[0] >= 0)


def test_scores_of_some_items_come_from_the_shard_that_holds_them(case):
    index, shards, vectors, weights = case
    nums = np.array([5, 1999, 0, 777])
    np.testing.assert_array_equal(
        shards.score_items(vectors[3], nums, weights[3]),
        index.score_items(vectors[3], nums, weights[3]),
    )


@given(st.integers(1, 5), st.integers(1, 30), st.integers(1, 12), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_merging_keeps_the_order_of_scores_and_item_nums(n_parts, n_items, top_k, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, n_items).astype(np.float32)
    holder = rng.integers(0, n_parts, n_items)
    order = np.lexsort((np.arange(n_items), -scores))
    answers = []
    for part in range(n_parts):
        own = order[holder[order] == part][:top_k]
        nums, best = np.full((1, top_k), -1, np.int32), np.full((1, top_k), -np.inf, np.float32)
        nums[0, : len(own)], best[0, : len(own)] = own, scores[own]
        answers.append((nums, best))
    nums, best = merge(answers, top_k=top_k)
    wanted = order[:top_k]
    assert nums[0, : len(wanted)].tolist() == wanted.tolist()
    assert np.all(nums[0, len(wanted) :] == -1)
    np.testing.assert_array_equal(best[0, : len(wanted)], scores[wanted])


def test_a_build_of_shards_opens_as_the_whole_and_one_by_one(tmp_path):
    index = make_index("ivf", "inner_product")
    workspace = Workspace(str(tmp_path))
    vectors, _ = planted_world("inner_product")
    query = {"weights": np.ones((9, 2), np.float32), "top_k": 25}
    wanted = index.search(SearchRequest(vectors[:9], **query))
    for n_shards in (1, 4):
        build, coded = plant_index(workspace, index, n_shards=n_shards)
        opened = open_index(build, coded)
        assert isinstance(opened, Shards) == (n_shards > 1)
        got = opened.search(SearchRequest(vectors[:9], **query))
        np.testing.assert_array_equal(got[0], wanted[0])
        np.testing.assert_array_equal(got[1], wanted[1])
    parts = [open_shard(build, coded, number) for number in range(4)]
    assert sum(part.codes.n_items for part in parts) == N_ITEMS
    np.testing.assert_array_equal(
        Shards(parts).search(SearchRequest(vectors[:9], **query))[0], wanted[0]
    )
    with pytest.raises(BuildError, match="shards 0 to 3, not 4"):
        open_shard(build, coded, 4)
