import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raysys.errors import DataError
from raysys.simulate.world import BLOCK_USERS, World, WorldSpec, first_at_least, n_blocks

SPEC = WorldSpec(n_users=3000, n_items=300, n_interactions=60_000)


@pytest.fixture(scope="module")
def world():
    return World.make(SPEC)


@pytest.fixture(scope="module")
def log(world):
    return pa.concat_tables([world.log_block(block) for block in range(n_blocks(SPEC))])


def test_the_log_has_the_promised_shape(log):
    assert 0.6 * SPEC.n_interactions < len(log) < 1.1 * SPEC.n_interactions
    assert pc.count_distinct(log["user_id"]).as_py() == SPEC.n_users
    assert pc.min_max(log["rating"]).as_py() == {"min": 1.0, "max": 5.0}
    pairs = log.group_by(["user_id", "item_id"]).aggregate([])
    assert len(pairs) == len(log)
    shares = np.bincount(log["rating"].to_numpy().astype(int))[1:] / len(log)
    assert shares.min() > 0.02
    assert shares.max() < 0.5


def test_a_block_depends_on_seed_and_block_alone(world):
    again = World.make(SPEC)
    assert world.log_block(1).equals(again.log_block(1))
    other = World.make(dataclasses.replace(SPEC, seed=1))
    assert not world.log_block(1).equals(other.log_block(1))
    assert len(set(world.log_block(1)["user_id"].to_pylist())) == SPEC.n_users - BLOCK_USERS


def test_ratings_follow_enjoyment_and_exposure_follows_popularity(world, log):
    row = {item: number for number, item in enumerate(world.item_ids())}
    item = np.array([row[i] for i in log["item_id"].to_pylist()])
    user = np.array([world.user_number(u) for u in log["user_id"].to_pylist()])
    logit = world._logit(np.einsum("md,md->m", world.users[user], world.items[item]))
    assert np.corrcoef(logit + world.quality[item], log["rating"].to_numpy())[0, 1] > 0.7
    seen = np.bincount(item, minlength=SPEC.n_items)
    early = world.release == 0
    assert np.corrcoef(np.log(seen[early] + 1), np.log(world.popularity[early]))[0, 1] > 0.6


def test_nothing_is_consumed_before_its_release(world, log):
    released = dict(zip(world.item_ids(), world.item_table()["released"].to_pylist()))
    early = [
        t < released[i]
        for i, t in zip(log["item_id"].to_pylist(), log["timestamp"].to_pylist(), strict=True)
    ]
    assert not any(early)


def test_the_truth_reads_back(world, tmp_path):
    world.save(tmp_path / "world")
    back = World.load(tmp_path / "world")
    assert back.spec == SPEC
    enjoyment = back.enjoyment("u0007")
    assert enjoyment.shape == (SPEC.n_items,)
    assert (enjoyment > 0).all()
    assert (enjoyment < 1).all()
    np.testing.assert_array_equal(enjoyment, world.enjoyment("u0007"))
    np.testing.assert_allclose(back.consumption("u0007").sum(), 1)
    assert back.consumption("u0007", day=0)[world.release > 0].sum() == 0
    assert len(set(back.item_table()["title"].to_pylist())) == SPEC.n_items


def test_unknown_users_and_folders_are_refused(world, tmp_path):
    with pytest.raises(DataError, match="no user 'u9999'"):
        world.enjoyment("u9999")
    with pytest.raises(DataError, match="no simulated world"):
        World.load(tmp_path)


def test_a_world_of_events(world):
    events = World.make(dataclasses.replace(SPEC, rated=False)).log_block(0)
    assert set(events["event"].to_pylist()) == {"view", "like"}
    assert events["rating"].null_count == len(events)


def test_what_is_shown_is_found_as_by_a_search():
    rng = np.random.default_rng(3)
    for n in (1, 2, 7, 1000):
        weight = rng.random(n) ** 4 * (rng.random(n) > 0.3)
        weight[0] += 1e-9
        ascending = np.cumsum(weight / weight.sum())
        keys = np.concatenate([rng.random(500), ascending[ascending < 1], [0.0]])
        expected = np.minimum(np.searchsorted(ascending, keys), n - 1)
        assert np.array_equal(first_at_least(ascending, keys[None])[0], expected)
