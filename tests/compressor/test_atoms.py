import numpy as np
import pytest

from raysys.compressor.atoms import atom_usage, items_of_atom, shared_atoms
from raysys.compressor.codes import Codes
from raysys.errors import ConfigError, SearchError


@pytest.fixture
def world():
    rng = np.random.default_rng(0)
    dictionary = rng.normal(size=(32, 12)).astype(np.float32)
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    atoms = np.argsort(rng.random((200, 30)), axis=1)[:, :5]  # atoms 30 and 31 are dead
    values = rng.normal(size=atoms.shape).astype(np.float32)
    codes = Codes.pack(atoms, values, dictionary=dictionary, value_bits=16)
    dense = np.zeros((200, 32), dtype=np.float32)
    np.put_along_axis(dense, atoms, codes.atoms_and_values(np.arange(200))[1], axis=1)
    return dictionary, codes, dense


def test_usage_counts_every_entry(world):
    _, codes, dense = world
    usage = atom_usage(codes, 32)
    np.testing.assert_array_equal(usage, np.count_nonzero(dense, axis=0))
    assert not usage[30:].any()


def test_top_items_are_those_of_the_dense_codes(world, monkeypatch):
    _, codes, dense = world
    monkeypatch.setattr("raysys.compressor.atoms._CHUNK_ROWS", 37)
    for atom in (0, 7, 31):
        nums, values = items_of_atom(codes, atom, top_k=6)
        column = dense[:, atom]
        order = np.argsort(-np.abs(column), kind="stable")[: min(6, np.count_nonzero(column))]
        np.testing.assert_array_equal(nums, order)
        np.testing.assert_allclose(values, column[order])
    with pytest.raises(ConfigError, match="top_k=0"):
        items_of_atom(codes, 0, top_k=0)


def test_an_item_shares_all_its_atoms_with_itself(world):
    dictionary, codes, dense = world
    found = shared_atoms(codes, dictionary, 3, 3)
    assert {each.atom for each in found} == set(np.flatnonzero(dense[3]))
    assert [each.product for each in found] == sorted((e.product for e in found), reverse=True)
    for each in found:
        assert each.product == pytest.approx(dense[3, each.atom] ** 2, rel=1e-5)


def test_shared_atoms_of_two_items(world):
    dictionary, codes, dense = world
    both = (dense != 0).astype(int)
    first, second = np.argwhere(both @ both.T == 2)[0]
    found = shared_atoms(codes, dictionary, first, second)
    assert {e.atom for e in found} == set(np.flatnonzero(both[first] * both[second]))
    whole = (dense[first] @ dictionary) @ (dense[second] @ dictionary)
    for each in found:
        assert each.share == pytest.approx(each.first * each.second / whole, rel=1e-3)


def test_dense_codes_hold_no_atoms():
    codes = Codes.pack_dense(np.ones((5, 3), dtype=np.float32), similarity="cosine")
    with pytest.raises(SearchError, match="no atoms"):
        atom_usage(codes, 0)
