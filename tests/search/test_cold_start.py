import numpy as np
import pytest

from raysys.errors import DataError
from raysys.search.cold_start import ColdMap


def warm(n_items=600, noise=0.05, seed=0):
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(n_items, 12))
    true = rng.normal(size=(12, 8))
    vectors = content @ true + 0.7 + noise * rng.normal(size=(n_items, 8))
    bias = content[:, :1] * 2 - 3
    return content.astype(np.float32), vectors.astype(np.float32), bias.astype(np.float32)


def test_a_planted_linear_map_is_found_with_its_constant():
    content, vectors, bias = warm()
    fitted = ColdMap.fit(content[:500], vectors[:500], bias[:500], seed=0)
    got, got_bias = fitted.predict(content[500:])
    np.testing.assert_allclose(got, vectors[500:], atol=0.4)
    np.testing.assert_allclose(got_bias, bias[500:], atol=0.1)
    assert fitted.recall > 0.8
    assert fitted.n_held_out == 50


def test_content_that_says_nothing_has_the_recall_of_chance():
    content, vectors, bias = warm()
    content = np.random.default_rng(9).normal(size=content.shape).astype(np.float32)
    assert ColdMap.fit(content, vectors, bias, seed=0).recall < 0.1


def test_what_cannot_be_fitted_or_predicted():
    content, vectors, bias = warm(40)
    with pytest.raises(DataError, match="40 items have both"):
        ColdMap.fit(content, vectors, bias, seed=0)
    with pytest.raises(DataError, match="have 5 numbers"):
        ColdMap.fit(*warm(), seed=0).predict(content[:, :5])
