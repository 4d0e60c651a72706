"""Finished trials: what names them, and which sweeps take them."""

import dataclasses

import pytest

from raysys.commands import trial_records
from raysys.commands.trial import Measured, TrialPlan
from raysys.commands.trial_records import record, recorded, trial_digest
from raysys.store.builds import Workspace
from tests.support.training import config, planted_run

FOUND = Measured(
    metrics={"recall@20": 0.1, "nll": 1.2},
    objectives={"recall@20": 0.1},
    epochs=3,
    history=[[0, 0.05], [1, 0.1]],
    seconds=1.5,
    training_seconds=1.0,
    worker_seconds=1.0,
    peak_bytes=10,
    rows_per_s=20.0,
    build_ids={"profiles": "p"},
)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    workspace = planted_run(tmp_path_factory.mktemp("records") / "run")
    profiles = workspace.current("profiles").build_id
    return TrialPlan(workspace.run, None, profiles, config(workspace), ("recall@20",))


def test_what_decides_a_trial_is_in_its_digest(plan, monkeypatch):
    values = {"optim.lr": 0.02}
    name = trial_digest(plan, values, seed=0)
    same = [
        trial_digest(plan, {"optim.lr": "0.02"}, seed=0),
        trial_digest(dataclasses.replace(plan, objectives=("recall@20", "nll")), values, seed=0),
        trial_digest(dataclasses.replace(plan, threads=1), values, seed=0),
        trial_digest(plan, values | {"launch.workers": 3}, seed=0),
        trial_digest(plan, values | {"compressor.n_active": 8}, seed=0),  # no part of a fit
    ]
    assert set(same) == {name}
    whole = dataclasses.replace(plan, whole=True)
    others = [
        trial_digest(plan, values, seed=1),
        trial_digest(plan, {"optim.lr": 0.03}, seed=0),
        trial_digest(dataclasses.replace(plan, objectives=("ndcg@100",)), values, seed=0),
        *(
            trial_digest(whole, values | more, seed=0)
            for more in (
                {},
                {"compressor.n_active": 8},
                {"compressor.keep": 8},
                {"index.kind": "flat"},
                {"prepare.liked_levels": ["2"]},
            )
        ),
    ]
    monkeypatch.setattr(trial_records, "code_version", lambda: "another")
    others.append(trial_digest(plan, values, seed=0))
    assert len({name, *others}) == 1 + len(others)


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_record_serves_sweeps_whose_objectives_it_has(tmp_path, request, place):
    where = tmp_path if place == "local" else f"{request.getfixturevalue('s3_bucket')}/records"
    storage = Workspace(str(where), cache_dir=str(tmp_path / "cache")).storage
    assert recorded(storage, "a", objectives=("nll",)) is None
    record(storage, "a", FOUND)
    assert recorded(storage, "a", objectives=("recall@20",)) == FOUND
    assert recorded(storage, "a", objectives=("nll",)).objectives == {"nll": 1.2}
    assert recorded(storage, "a", objectives=("nll", "rmse")) is None
    record(storage, "a", dataclasses.replace(FOUND, metrics={"rmse": 0.9}))
    both = recorded(storage, "a", objectives=("nll", "rmse"))
    assert both.objectives == {"nll": 1.2, "rmse": 0.9}
    storage.write_atomic("sweeps/trials/a.json", "{half")
    assert recorded(storage, "a", objectives=("nll",)) is None
