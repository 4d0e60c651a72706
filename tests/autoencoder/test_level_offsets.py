"""Offsets of levels: found where ratings moved, none where they did not, and kept by the refit."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raysys.autoencoder.calibration import level_offsets
from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.task import AutoencoderTask
from raysys.data.cells import Cells
from raysys.data.profiles import Profiles, ProfilesFacts
from raysys.data.schema import RatingLevels, Window, default_liked
from raysys.training.loop import train
from raysys.training.optim import OptimConfig
from raysys.training.task import Ranks

VALUES = (1.0, 2.0, 3.0, 4.0, 5.0)
STARS = RatingLevels(tuple("12345"), VALUES, default_liked(VALUES))
MOVED = torch.tensor([0.2, 0.4, 0.1, 0.0, -0.7])


def drawn(shift, n_users=300, per_user=20):
    """Logits of cells, and levels drawn from them after a shift."""
    draw = torch.Generator().manual_seed(4)
    logits = torch.randn(n_users * per_user, 5, generator=draw)
    p = torch.softmax(logits + shift, dim=1)
    level = torch.multinomial(p, 1, generator=draw)[:, 0]
    return logits, level, torch.arange(n_users).repeat_interleave(per_user)


def test_a_shift_is_found():
    logits, level, user = drawn(MOVED)
    offsets, value = level_offsets(logits, level, user)
    moved = MOVED - MOVED.mean()
    torch.testing.assert_close((offsets - offsets.mean()).float(), moved, atol=0.1, rtol=0)
    cross_entropy = torch.nn.functional.cross_entropy
    assert value == pytest.approx(float(cross_entropy(logits + MOVED, level)), abs=0.002)
    assert value < 0.98 * float(cross_entropy(logits, level))


def test_without_a_shift_there_are_no_offsets():
    logits, level, user = drawn(torch.zeros(5))
    offsets, value = level_offsets(logits, level, user)
    assert not offsets.any()
    assert value == pytest.approx(float(torch.nn.functional.cross_entropy(logits, level)))


@pytest.mark.parametrize("n_users", [1, 2])
def test_the_mood_of_one_user_says_nothing_of_others(n_users):
    logits, level, user = drawn(torch.zeros(5), n_users=n_users, per_user=1000)
    level[user == 0] = 0
    assert not level_offsets(logits, level, user)[0].any()


def test_levels_thought_impossible_are_no_trouble():
    logits, level, user = drawn(MOVED)
    offsets, value = level_offsets(logits - torch.tensor([0, 0, 0, 0, 40.0]), level, user)
    assert offsets.isfinite().all()
    assert value < 2


def moved_profiles(tmp_path, share_late):
    """Profiles of users who rate by chance, from the validation on with other shares."""
    rng = np.random.default_rng(5)
    early = np.full(5, 0.2)
    lists, windows = [], []
    for _ in range(300):
        items = rng.permutation(30)[:16]
        levels = [*rng.choice(5, 8, p=early), *rng.choice(5, 8, p=share_late)]
        lists.append([(int(i), int(r)) for i, r in zip(items, levels)])
        windows += [Window.FIT] * 8 + [Window.VAL] * 6 + [Window.TEST] * 2
    cells = Cells.from_lists(lists)
    window = np.array(windows, dtype=np.uint8)
    cells = dataclasses.replace(cells, timestamp=window.astype(np.int64) * 100, window=window)
    path = tmp_path / "shard-00000.parquet"
    pq.write_table(cells.to_table(), path)
    return Profiles(
        items=pa.table({"item_num": np.arange(30, dtype=np.int32)}),
        user_ids=pa.chunked_array([[str(n) for n in range(300)]]),
        levels=STARS,
        facts=ProfilesFacts(
            split="temporal",
            n_users=300,
            n_items=30,
            catalogue={"val": 30, "test": 30, "all": 30},
            cutoffs={"val": 100, "test": 200},
            has_time=True,
            n_cells={},
        ),
        shard_paths=(path,),
    )


def trained(profiles, n_phases):
    """The tasks of a training and its final state."""
    tasks = []

    def phase(period, validated):
        def make():
            cfg = Conv4RecConfig(latent=4, level_latent=4)
            fixed = {"cells": profiles.cells(), "seed": 0}
            task = AutoencoderTask(profiles, cfg, period=period, validated=validated, **fixed)
            tasks.append(task)
            return task

        return make

    phases = [phase("val", True), phase("test", False)][:n_phases]
    optim = OptimConfig(lr=1e-4, epochs=2)
    return tasks, train(phases, optim, seed=0, ranks=Ranks())


def test_a_refit_takes_the_offsets_of_the_validation(tmp_path):
    profiles = moved_profiles(tmp_path, [0.3, 0.2, 0.3, 0.2, 0.0])
    tasks, state = trained(profiles, 2)
    chosen = [state["choices"][f"level_offset_{name}"] for name in STARS.names]
    assert chosen[4] < -0.5
    assert min(chosen[0], chosen[2]) > max(chosen[1], chosen[3])
    for task in tasks:
        torch.testing.assert_close(task.module.level_offset, torch.tensor(chosen))
    torch.testing.assert_close(state["model"]["level_offset"], torch.tensor(chosen))
    # the same for an item of the catalogue, one at a time or all at once, and for an unknown one
    model = tasks[1].module
    z = torch.zeros(1, model.width + len(model.mean_level_latent))
    item = torch.tensor([3])
    with torch.no_grad():
        known, unknown = (model.level_logits(model.split(z)[1], i) for i in (item, None))
        every = model.log_p_levels(z)[:, 3]
    torch.testing.assert_close(known.log_softmax(dim=1), every)
    torch.testing.assert_close(unknown[0], model.log_overall + torch.tensor(chosen))


def test_ratings_that_stay_as_they_were_get_no_offsets(tmp_path):
    (task,), state = trained(moved_profiles(tmp_path, np.full(5, 0.2)), 1)
    assert not any(name.startswith("level_offset") for name in state["choices"])
    assert not task.module.level_offset.any()
