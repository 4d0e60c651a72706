import numpy as np
import pytest

from raysys.compressor.paper_modes import search
from raysys.errors import ConfigError

S, D, N_ACTIVE = 30, 8, 4


@pytest.fixture
def planted():
    rng = np.random.default_rng(0)
    dictionary = rng.standard_normal((S, D)).astype(np.float32)
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)

    def codes(n):
        atoms = np.argsort(rng.random((n, S)), axis=1)[:, :N_ACTIVE]
        return atoms, rng.standard_normal((n, N_ACTIVE)).astype(np.float32)

    return codes(200), codes(70), dictionary


def dense(codes):
    out = np.zeros((len(codes[0]), S), dtype=np.float64)
    np.put_along_axis(out, codes[0], codes[1].astype(np.float64), axis=1)
    return out


@pytest.mark.parametrize("mode", ["sparse", "reconstructed"])
def test_modes_are_the_cosines_of_the_paper(planted, mode):
    items, queries, dictionary = planted
    items[1][5] = 0  # an item without a code has cosine 0 to everything
    s_i, s_q = dense(items), dense(queries)
    kernel = np.eye(S) if mode == "sparse" else dictionary.astype(np.float64) @ dictionary.T
    product = s_q @ kernel @ s_i.T
    own = [np.sqrt(np.einsum("ms,st,mt->m", s, kernel, s)) for s in (s_q, s_i)]
    expected = product / np.maximum(own[0][:, None] * own[1], 1e-12)
    nums, scores = search(mode, items, queries, dictionary, top_k=200)
    np.testing.assert_allclose(scores, np.take_along_axis(expected, nums, axis=1), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()
    np.testing.assert_array_equal(np.sort(nums, axis=1), np.tile(np.arange(200), (70, 1)))


def test_an_unknown_mode_is_refused(planted):
    with pytest.raises(ConfigError, match="sparse or reconstructed"):
        search("dense", *planted, top_k=3)
