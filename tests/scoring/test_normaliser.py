"""The sum over the catalogue from a sample of it."""

import numpy as np
import pytest

from raysys.data.schema import RatingLevels
from raysys.scoring.files import Weights
from raysys.scoring.normaliser import (
    N_SAMPLED,
    Normaliser,
    exact_sums,
    importance,
    measured,
    sample,
)
from raysys.scoring.scorer import Scorer

N_ITEMS, WIDTH, N_USERS = 30_000, 16, 200
ONE = RatingLevels(("consumed",), (None,), (True,))


@pytest.fixture(scope="module")
def scorer():
    """A model whose scores say a lot of a user, and whose items are as unequal as in logs."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(N_ITEMS, WIDTH))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    prior = -np.log(np.arange(1, N_ITEMS + 1)).astype(np.float32)
    arrays = {
        "rows": rows.astype(np.float16),
        "scales": np.ones((2, N_ITEMS), dtype=np.float32),
        "prior": rng.permutation(prior),
    }
    link = {"fitted": np.float32(0), "typical_slope": np.float32(1)}
    link |= {"parameters_log": np.zeros(4, np.float32), "shift": np.zeros(2, np.float32)}
    tables = {f"link.{name}": value for name, value in link.items()}
    return Scorer(Weights(arrays, tables | {"discover_slope": np.float32(0.1)}, ONE))


@pytest.fixture(scope="module")
def users():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(N_USERS, WIDTH)).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True) * np.float32(3)


def drawn(scorer, spread, size):
    return sample(importance(scorer, spread), np.argsort(scorer.prior, kind="stable"), size)


def best(scorer, z, n_best=100):
    return np.stack([np.argsort(-scorer.all_consume_scores(one))[:n_best] for one in z])


def exact(scorer, z):
    return exact_sums(scorer, z, z)[1]


def test_the_exact_sum_is_that_of_all_scores(scorer, users):
    wanted = [np.log(np.exp(scorer.all_consume_scores(z).astype(float)).sum()) for z in users[:5]]
    np.testing.assert_allclose(exact(scorer, users[:5]), wanted, rtol=1e-5)


def test_a_sample_meets_the_exact_sum_and_says_how_well(scorer, users):
    nobody = [np.zeros(0, dtype=np.int32)] * N_USERS
    top = best(scorer, users)
    spread, found, recall = measured(scorer, users, nobody, top)
    assert found["n_users"] == N_USERS / 2
    assert found["error_median"] < 0.03
    normaliser = Normaliser(scorer, spread, found["long"])
    error = np.abs(normaliser.log_z(users, nobody, top) - exact(scorer, users))
    assert found["error_median"] == pytest.approx(np.median(error[1::2]), rel=1e-3)
    assert recall == 1.0


def test_one_user_gives_a_spread_and_nobody_to_measure(scorer, users):
    own, top = [np.array([1, 2], dtype=np.int32)], best(scorer, users[:1])
    _, found, _ = measured(scorer, users[:1], own, top)
    assert (found["n_users"], found["error_median"]) == (0, 0.0)


def test_what_candidates_miss_of_the_best_items_is_told(scorer, users):
    own = [top[:7].astype(np.int32) for top in best(scorer, users)]
    others = np.stack([top[7:] for top in best(scorer, users, 107)])
    assert measured(scorer, users, own, others)[2] == 1.0
    assert measured(scorer, users, own, others[:, 5:])[2] == 0.75


def test_a_prior_that_moves_moves_the_sum_with_it(scorer, users):
    spread, *_ = exact_sums(scorer, users, users)
    rng = np.random.default_rng(2)
    moved = scorer.with_prior(rng.permutation(scorer.prior))
    found = Normaliser(moved, spread).log_z(users, [np.zeros(0, dtype=np.int32)] * N_USERS)
    assert np.median(np.abs(found - exact(moved, users))) < 0.03


def test_items_of_the_profile_are_summed_exactly_and_once(scorer, users):
    spread, *_ = exact_sums(scorer, users, users)
    nums, weights = drawn(scorer, spread, N_SAMPLED)
    outside = int(np.setdiff1d(np.arange(N_ITEMS), nums)[0])
    own = np.array([outside, outside, nums[3]])
    terms = np.exp(scorer.all_consume_scores(users[0]).astype(float))
    normaliser = Normaliser(scorer, spread)
    sampled = np.exp(normaliser.sample_scores(users[:1])[0].astype(float))
    rest = ~np.isin(nums, own)
    wanted = (weights * sampled)[rest].sum() + terms[[outside, nums[3]]].sum()
    found = normaliser.log_z(users[:1], [own])
    np.testing.assert_allclose(found, np.log(wanted), rtol=1e-5)
    every = Normaliser(scorer, None).log_z(users[:1], [own])
    np.testing.assert_allclose(every, exact(scorer, users[:1]), rtol=1e-5)


def test_scores_of_the_sample_are_rounded_a_little(scorer, users):
    spread, *_ = exact_sums(scorer, users, users)
    nums, _ = drawn(scorer, spread, N_SAMPLED)
    found = Normaliser(scorer, spread).sample_scores(users)
    wanted = np.stack([scorer.consume_scores(z, nums) for z in users])
    steps = np.abs(scorer.vectors(nums)).max(axis=1) / 127
    assert (np.abs(found - wanted) < 0.51 * np.abs(users).sum(axis=1)[:, None] * steps).all()
    assert np.abs((found - wanted).mean()) < 1e-3 * wanted.std()
    one = Normaliser(scorer, spread).sample_scores(users[7:8])
    np.testing.assert_array_equal(one[0], found[7])


def test_chances_give_the_number_asked_for_and_the_head_is_certain(scorer, users):
    spread, *_ = exact_sums(scorer, users, users)
    nums, weights = drawn(scorer, spread, 500)
    assert len(nums) == pytest.approx(500, abs=2)
    assert (np.diff(nums) > 0).all()
    assert weights.min() == 1
    head = np.argsort(-scorer.prior)[:5]
    assert set(head) <= set(nums[weights == 1])
    assert weights.sum() == pytest.approx(N_ITEMS, rel=0.2)


def test_a_long_latent_gets_more_of_the_catalogue(scorer, users):
    spread, *_ = exact_sums(scorer, users, users)
    z = np.concatenate([users[:20], 2 * users[:20]])
    asked = [np.zeros(0, dtype=np.int32)] * len(z), best(scorer, z)
    usual, longer = Normaliser(scorer, spread), Normaliser(scorer, spread, 4.0)
    assert longer.long(z).tolist() == list(range(20, 40))
    errors = [np.abs(n.log_z(z, *asked) - exact(scorer, z)) for n in (usual, longer)]
    np.testing.assert_array_equal(errors[0][:20], errors[1][:20])
    assert np.median(errors[1][20:]) < 0.6 * np.median(errors[0][20:])


def test_no_list_is_likelier_than_one(scorer, users):
    """However little a sample knows of a user, the best items are in the sum."""
    spread, *_ = exact_sums(scorer, users, users)
    z = 10 * users[:20]
    top = best(scorer, z)
    log_z = Normaliser(scorer, spread).log_z(z, [top[0, :0]] * len(z), top)
    for user, nums in enumerate(top):
        listed = scorer.score(z[user], nums, float(log_z[user])).log_p_consume
        assert np.exp(listed.astype(float)).sum() <= 1 + 1e-5
