"""Rows that share one strong atom are found wherever they lie."""

import dataclasses
import itertools

import numpy as np
import pytest

from raysys.compressor.codes import Codes
from raysys.index import holders as module
from raysys.index.build import IndexParams, build_index
from raysys.index.files import IndexFacts, open_index
from raysys.index.holders import Holders, nobody
from raysys.index.recall import Probe, set_efforts
from raysys.index.request import SearchRequest
from raysys.index.shards import Shards, shard_bounds, shard_of
from raysys.store.builds import Workspace
from tests.support.planting import plant_index

N_ITEMS, DIM, N_ATOMS, N_ACTIVE = 6000, 32, 32, 8
RARE = 7  # the atom that a few rows in all lists share
N_RARE = 60


def make_codes(value_bits=4):
    rng = np.random.default_rng(0)
    dictionary = np.eye(N_ATOMS, dtype=np.float32)
    atoms = np.stack([rng.choice(RARE, N_ACTIVE - 1, replace=False) for _ in range(N_ITEMS)])
    atoms = np.concatenate([atoms, np.full((N_ITEMS, 1), RARE)], axis=1)
    values = rng.normal(size=atoms.shape)
    values[:, -1] = 0.01  # of nobody's strongest
    rare = rng.choice(N_ITEMS, N_RARE, replace=False)
    values[rare, -1] = rng.uniform(3, 4, N_RARE)
    return Codes.pack(
        atoms, values, dictionary=dictionary, similarity="inner_product", value_bits=value_bits
    )


@pytest.fixture(scope="module")
def made():
    """An index whose biases decide for most queries, the bias of the rare rows the least."""
    rng = np.random.default_rng(1)
    codes = make_codes()
    bias = rng.standard_exponential((N_ITEMS, 1)).astype(np.float32)
    return build_index(
        codes,
        np.eye(N_ATOMS, dtype=np.float32),
        bias,
        similarity="inner_product",
        params=IndexParams(kind="ivf"),
    )


def request(effort=1, top_k=20, length=10.0, **more):
    """Queries along the rare atom, and others."""
    rng = np.random.default_rng(2)
    queries = 0.01 * rng.normal(size=(10, DIM)).astype(np.float32)
    queries[:5, RARE] = length
    weights = np.ones((10, 1), np.float32)
    return SearchRequest(
        queries, top_k=top_k, weights=weights, effort=effort, guarantee=False, **more
    )


def held_by_hand(index, most):
    """Return {(atom, sign): rows}, and the largest values, entry by entry."""
    atoms, values = index.codes.atoms_and_values(np.arange(index.codes.n_items))
    values = values / index.codes.unit[0]
    found = {}
    for row in range(len(atoms)):
        order = np.argsort(-np.abs(values[row]), kind="stable")[:4]
        for j in order.tolist():
            if values[row, j] != 0:
                pair = int(atoms[row, j]), bool(values[row, j] < 0)
                found.setdefault(pair, []).append((-abs(values[row, j]), row))
    return (
        {pair: sorted(row for _, row in sorted(rows)[:most]) for pair, rows in found.items()},
        {pair: -min(rows)[0] for pair, rows in found.items()},
    )


@pytest.mark.parametrize("most", [50, 1024])
@pytest.mark.parametrize("value_bits", [4, 8, 16])
def test_holders_are_the_largest_of_the_four_strongest(value_bits, most, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", most)
    codes = make_codes(value_bits)
    bias = np.zeros((N_ITEMS, 1), np.float32)
    stored = codes.stored(bias, np.arange(N_ITEMS, dtype=np.int32))
    found = Holders.of(stored, N_ATOMS)
    wanted, largest = held_by_hand(dataclasses.make_dataclass("I", ["codes"])(codes), most)
    for atom, negative in itertools.product(range(N_ATOMS), (False, True)):
        place = atom + N_ATOMS * negative
        rows = found.rows[found.starts[place] : found.starts[place + 1]]
        assert rows.tolist() == wanted.get((atom, negative), [])
        assert found.largest[place] == pytest.approx(largest.get((atom, negative), 0), rel=1e-5)
    assert found.starts[-1] == len(found.rows)


def test_rare_rows_are_found_from_one_list(made):
    exact = made.search(request(effort=made.n_lists))
    found = made.search(request())
    np.testing.assert_array_equal(found[0][:5], exact[0][:5])
    np.testing.assert_array_equal(found[1][:5], exact[1][:5])
    holders = made.holders
    made.set_holders(nobody(1))
    without = made.search(request())
    made.set_holders(holders)
    assert (without[0][:5] != exact[0][:5]).mean() > 0.5
    assert all(len(set(row)) == len(row) for row in found[0].tolist())


@pytest.mark.parametrize("n_queries", [1, 10])
@pytest.mark.parametrize("effort", [1, 7, 60])
def test_a_row_counts_once_wherever_it_is(made, effort, n_queries):
    asked = request(effort, top_k=300).only(np.arange(n_queries))
    nums, scores = made.search(asked)
    for q in range(n_queries):
        kept = nums[q][nums[q] >= 0]
        assert len(set(kept.tolist())) == len(kept)
        np.testing.assert_allclose(
            scores[q][: len(kept)],
            made.score_items(asked.queries[q], kept, asked.weights[q]),
            rtol=1e-6,
        )


def test_what_is_excluded_or_not_allowed_stays_out(made):
    best = made.search(request())[0]
    allow = np.ones(N_ITEMS, dtype=bool)
    allow[best[0, :3]] = False
    asked = request(allow=allow, exclude=[row[3:6] for row in best])
    found = made.search(asked)[0]
    exact = made.search(dataclasses.replace(asked, effort=made.n_lists))[0]
    np.testing.assert_array_equal(found[:5], exact[:5])
    assert not np.isin(found[0], best[0, :6]).any()


def test_queries_that_subtract_a_bias_or_gain_less_go_without(made):
    holders = made.holders
    with_all = made.search(request())[0]
    limit = holders.gains(made.codes.table(request().queries, made.dictionary))[:5].min()
    for least, same in ((limit, True), (np.nextafter(limit, np.float32(np.inf)), False)):
        made.set_holders(holders._replace(least=np.array([least], np.float32)))
        assert np.array_equal(made.search(request())[0][:5], with_all[:5]) == same
    made.set_holders(holders)
    asked = dataclasses.replace(request(), weights=np.full((10, 1), -1, np.float32))
    found = made.search(asked)[0]
    made.set_holders(nobody(1))
    np.testing.assert_array_equal(made.search(asked)[0], found)
    made.set_holders(holders)


def test_shards_have_the_holders_of_the_whole(made):
    bounds = shard_bounds(made, 3)
    shards = Shards([shard_of(made, a, b) for a, b in itertools.pairwise(bounds)])
    moved = -made.bias[made.layout.rows, 0]
    for one, other in ((made, shards), (made.with_bias(0, moved), shards.with_bias(0, moved))):
        for effort in (1, 5):
            asked = request(effort, top_k=100)
            for got, wanted in zip(other.search(asked), one.search(asked), strict=True):
                np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("top_k", [20, 300, 1000, 2500])
@pytest.mark.parametrize("effort", [1, 20, 100])
def test_a_shard_without_the_strongest_atom_finds_the_second_once(top_k, effort):
    """One row holds atom 8, and with it more than any: it lies in one shard alone."""
    rng = np.random.default_rng(4)
    atoms = np.stack([rng.permutation(RARE)[: N_ACTIVE - 2] for _ in range(N_ITEMS)])
    others = np.tile(np.array([[RARE, RARE + 1]]), (N_ITEMS, 1))
    values = rng.normal(size=(N_ITEMS, N_ACTIVE))
    values[:, -2], values[:, -1] = rng.uniform(3, 4, N_ITEMS), 0
    values[11, -1] = 50
    codes = Codes.pack(
        np.concatenate([atoms, others], axis=1),
        values,
        dictionary=np.eye(N_ATOMS, dtype=np.float32),
        similarity="inner_product",
        value_bits=8,
    )
    bias = rng.standard_exponential((N_ITEMS, 1)).astype(np.float32)
    index = build_index(
        codes,
        np.eye(N_ATOMS, dtype=np.float32),
        bias,
        similarity="inner_product",
        params=IndexParams(kind="ivf"),
    )
    bounds = shard_bounds(index, 3)
    parts = [shard_of(index, a, b) for a, b in itertools.pairwise(bounds)]
    queries = 0.01 * rng.normal(size=(4, DIM)).astype(np.float32)
    queries[:, RARE : RARE + 2] = 1
    asked = SearchRequest(
        queries, top_k=top_k, weights=np.ones((4, 1), np.float32), effort=effort, guarantee=False
    )
    wanted = index.search(asked)
    for part in (index, *parts):
        for row in part.search(asked)[0]:
            kept = row[row >= 0]
            assert len(set(kept.tolist())) == len(kept)
    for got, one in zip(Shards(parts).search(asked), wanted, strict=True):
        np.testing.assert_array_equal(got, one)


@pytest.mark.parametrize("n_shards", [1, 2])
def test_holders_come_back_and_an_index_of_before_has_none(made, n_shards, tmp_path, monkeypatch):
    build, coded = plant_index(Workspace(str(tmp_path)), made, n_shards=n_shards)
    opened = open_index(build, coded)
    for got, wanted in zip(opened.search(request()), made.search(request()), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert IndexFacts.of(build).least_gains == (0.0,)
    old = dataclasses.replace(IndexFacts.of(build), least_gains=())  # version 7
    monkeypatch.setattr(IndexFacts, "of", lambda build: old)
    before = open_index(build, coded)
    holders = made.holders
    made.set_holders(nobody(1))
    for got, wanted in zip(before.search(request()), made.search(request()), strict=True):
        np.testing.assert_array_equal(got, wanted)
    made.set_holders(holders)


def test_the_build_measures_who_scores_them(made):
    rng = np.random.default_rng(3)
    queries = 0.01 * rng.normal(size=(200, DIM)).astype(np.float32)
    queries[:20, RARE] = rng.uniform(5, 15, 20)
    none = [np.zeros(0, np.int32)] * 200
    probe = Probe("consume", queries, np.ones((200, 1), np.float32), none)
    others = probe.only(np.arange(200) >= 20)
    gains = made.holders.gains(made.codes.table(queries, made.dictionary))
    assert gains[:20].min() > gains[20:].max()
    for probes, limit in (
        ([probe], gains[:20].min()),
        ([others], np.nextafter(gains[20:].max(), np.float32(np.inf))),
        ([others, probe], gains[:20].min()),  # who finds nothing lowers no limit
        ([dataclasses.replace(probe, queries=0 * queries)], np.inf),  # who gains nothing, either
    ):
        set_efforts(made, probes, params=IndexParams(kind="ivf"))
        assert made.holders.least[0] == np.float32(limit)
    made.set_holders(made.holders._replace(least=np.zeros(1, np.float32)))
