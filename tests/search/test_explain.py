import numpy as np
import pytest

from raysys.compressor.codes import Codes
from raysys.errors import SearchError
from raysys.index.index import Index
from raysys.index.shards import Shards, shard_of
from raysys.search.explain import explain
from tests.support.worlds import make_index, planted_world


@pytest.mark.parametrize("similarity", ["cosine", "inner_product"])
def test_contributions_add_up_to_the_score_and_name_who_shares_them(similarity):
    index = make_index("ivf", similarity)
    vectors, _ = planted_world(similarity)
    weights = np.full(index.n_bias, 0.5, np.float32)
    got = explain(index, vectors[60], weights, 61, profile=np.array([60, 900]), n_atoms=99)
    score = index.score_items(vectors[60], np.array([61]), weights)[0]
    assert got.score == pytest.approx(score, abs=1e-5)
    assert sum(a.contribution for a in got.atoms) + got.bias == pytest.approx(score, abs=1e-5)
    sizes = [abs(a.contribution) for a in got.atoms]
    assert sizes == sorted(sizes, reverse=True)
    assert any(60 in a.profile for a in got.atoms)
    assert all(set(a.profile) <= {60, 900} and 61 not in a.examples for a in got.atoms)
    atom = got.atoms[0]
    held, _ = index.codes.atoms_and_values(index.rows_of(np.array(atom.examples)))
    assert np.all((held == atom.atom).any(axis=1))
    halves = Shards([shard_of(index, 0, 900), shard_of(index, 900, index.n_items)])
    assert explain(halves, vectors[60], weights, 61, profile=np.array([60, 900]), n_atoms=99) == got


def test_dense_codes_have_no_atoms():
    rng = np.random.default_rng(0)
    codes = Codes.pack_dense(rng.normal(size=(20, 4)), similarity="cosine")
    index = Index(
        kind="flat",
        similarity="cosine",
        codes=codes,
        bias=np.zeros((20, 0), np.float32),
        dictionary=np.zeros((0, 4), np.float32),
    )
    with pytest.raises(SearchError, match="needs atoms"):
        explain(index, np.ones(4), np.zeros(0), 3, profile=np.zeros(0, np.int32))
