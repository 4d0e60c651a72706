"""What a walk through hnswlib's graph misses is known and compared directly."""

import hnswlib
import numpy as np
import pytest

from raysys.data.arrays import unit_rows
from raysys.index.router import Router, unreached_rows


def islands(noise, n_clusters=8, size=400, dim=16):
    """Return rows in clusters so narrow that a row's nearest are all of its own cluster."""
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(n_clusters, dim)), size, axis=0)
    return unit_rows((rows + noise * rng.normal(size=rows.shape)).astype(np.float32))


@pytest.mark.parametrize("noise", [0, 1e-6, 1e-4, 1e-2, 0.3])
@pytest.mark.parametrize("count", [1, 20])
def test_nearest_rows_are_found_in_islands_too(noise, count):
    rows = islands(noise)
    router = Router.fit(rows, seed=0)
    queries = rows[::16]
    nearest = router.nearest(queries, count)
    assert all(len(set(row)) == count for row in nearest.tolist())
    products = queries @ rows.T
    found = np.take_along_axis(products, nearest, axis=1)
    best = -np.sort(-products, axis=1)[:, :count]
    assert np.mean(found >= best[:, -1:] - 1e-5) >= 0.95  # of a beam of 48 in clusters of 400


def test_a_short_walk_finds_nearly_as_much():
    rows = unit_rows(np.random.default_rng(3).normal(size=(4000, 16)).astype(np.float32))
    router = Router.fit(rows, seed=0)
    queries = unit_rows(np.random.default_rng(4).normal(size=(200, 16)).astype(np.float32))
    products = queries @ rows.T
    for count in (1, 4):
        nearest = router.nearest(queries, count, short=True)
        assert nearest.shape == (200, count)
        found = np.take_along_axis(products, nearest, axis=1)
        best = -np.sort(-products, axis=1)[:, :count]
        assert np.mean(found >= best[:, -1:] - 1e-5) >= 0.9
    wanted = router.nearest(queries, 12)  # which no walk is too short for
    np.testing.assert_array_equal(router.nearest(queries, 12, short=True), wanted)


def test_rows_that_no_link_leads_to_are_named():
    rows = np.concatenate([islands(0, 3, 150), islands(0.3, 4, 50)])
    graph = hnswlib.Index(space="ip", dim=rows.shape[1])
    graph.init_index(len(rows), M=4, ef_construction=40, random_seed=0)
    graph.add_items(rows, np.arange(len(rows))[::-1], num_threads=1)  # labels are not positions
    graph.set_ef(len(rows))
    unreached = unreached_rows(graph)
    assert len(unreached) > 0
    assert (np.diff(unreached) > 0).all()

    def walk_finds(query, row):
        try:
            graph.knn_query(query, k=1, num_threads=1, filter=lambda label: label == row)
        except RuntimeError:
            return False
        return True

    queries = rows[::40]
    missed = [row for row in range(len(rows)) if not all(walk_finds(q, row) for q in queries)]
    assert missed
    assert set(missed) <= set(unreached.tolist())


def test_a_graph_in_one_piece_has_none():
    rows = unit_rows(np.random.default_rng(1).normal(size=(500, 8)).astype(np.float32))
    assert len(Router.fit(rows, seed=0).unreached) == 0


def test_unreached_rows_take_their_places_by_distance():
    rows = unit_rows(np.random.default_rng(2).normal(size=(300, 8)).astype(np.float32))
    router = Router.fit(rows, seed=0)
    wanted = router.nearest(rows[:50], 12)
    listed = np.arange(0, 300, 7)
    same = Router(router._graph, 300, listed)  # found by the walk and listed: once in the answer
    np.testing.assert_array_equal(same.nearest(rows[:50], 12), wanted)

    graph = hnswlib.Index(space="ip", dim=8)
    graph.init_index(300, M=16, ef_construction=160, random_seed=0)
    graph.add_items(rows, np.arange(300), num_threads=1)
    graph.set_ef(48)
    for row in listed:
        graph.mark_deleted(row)  # a walk passes these by
    partly = Router(router._graph, 300, listed)
    partly._graph = graph
    np.testing.assert_array_equal(partly.nearest(rows[:50], 12), wanted)
