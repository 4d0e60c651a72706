"""The test period is never read by a sweep: trials of a run where it is unusable are the same."""

import dataclasses

import numpy as np
import pytest

from raysys.commands.evaluate import EvaluateConfig, evaluate
from raysys.commands.train import train_builds
from raysys.commands.trial import TrialPlan, finalist, measure
from raysys.data import cells as module
from raysys.data.profiles import Profiles
from raysys.data.schema import Window
from raysys.errors import DataError
from raysys.evaluation.comparison import users_of_report
from tests.support.training import N_ITEMS, config, planted_cells, planted_run

UNSEEN = (Window.TEST, Window.TEST_IN)
VALUES = {"optim.lr": 0.02}


def spoiled():
    """Return the planted cells with items, levels and times of the test period that are none."""
    cells = planted_cells()
    test = np.isin(cells.window, UNSEEN)
    assert test.sum() > 100
    return dataclasses.replace(
        cells,
        item_num=np.where(test, 10**6, cells.item_num).astype(np.int32),
        level=np.where(test, 255, cells.level).astype(np.uint8),
        timestamp=np.where(test, -1, cells.timestamp),
    )


@pytest.fixture
def runs(tmp_path):
    return planted_run(tmp_path / "sound"), planted_run(tmp_path / "spoiled", cells=spoiled())


@pytest.fixture
def unread(monkeypatch):
    """Fail where a cell of the test period is handed to anybody."""
    read = module._shard

    def shard(path, windows):
        found = read(path, windows)
        assert not np.isin(found.window, UNSEEN).any(), "the test period was read"
        return found

    monkeypatch.setattr(module, "_shard", shard)


def plan_of(workspace, *objectives, whole):
    profiles = workspace.current("profiles").build_id
    base = config(workspace)
    return TrialPlan(workspace.run, None, profiles, base, objectives, whole=whole)


@pytest.mark.parametrize("whole", [False, True])
def test_trials_and_finalists_do_without_the_test_period(runs, unread, whole):
    metrics, users, histories = [], [], []
    for workspace in runs:
        plan = plan_of(workspace, "recall@20^0.2", "nll", whole=whole)
        found = measure(plan, VALUES, seed=0, folder="sweeps/trials/a", on_epoch=lambda _: None)
        metrics.append(found.metrics)
        report, via = finalist(plan, VALUES, seed=1, folder="sweeps/trials/b")["users"]
        users.append(users_of_report(workspace.storage, report, via))
        if whole:
            index = workspace.open("index", found.build_ids["index"])
            histories.append(np.load(index.path("histories/item_num.npy")))
    assert metrics[0] == metrics[1]
    assert users[0].equals(users[1])
    if whole:
        assert np.array_equal(*histories)
        assert histories[0].max() < N_ITEMS


def test_whatever_reads_the_test_period_notices_that_it_is_spoiled(runs, unread, monkeypatch):
    sound, spoiled_run = runs
    with pytest.raises(AssertionError, match="the test period was read"):
        Profiles.open(sound.current("profiles")).cells()
    with pytest.raises(AssertionError, match="the test period was read"):
        train_builds(config(sound, "refit=val", "model=autoencoder"), sound)
    for workspace in runs:
        train_builds(config(workspace, "refit=none", "model=autoencoder"), workspace)
    asked = {"period": "test", "baselines": [], "replicates": 0}
    with pytest.raises(AssertionError, match="the test period was read"):
        evaluate(EvaluateConfig(run=sound.run, **asked))
    monkeypatch.undo()
    assert evaluate(EvaluateConfig(run=sound.run, **asked)).metrics
    with pytest.raises((DataError, IndexError)):  # its audit finds items that are none
        evaluate(EvaluateConfig(run=spoiled_run.run, **asked))
