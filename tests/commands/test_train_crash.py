"""A training whose processes are killed goes on where it was, also on fewer workers.

Two workers and one end with the weights that a process alone trains without any accident.
"""

import contextlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from raysys.autoencoder.files import Autoencoder
from raysys.commands.train import train
from raysys.store.builds import Workspace
from tests.support.processes import end, tree
from tests.support.training import QUICK, config, planted_run

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("model=autoencoder", "refit=none", "optim.epochs=4", "optim.patience=0")
SAVING = "optim.checkpoint_steps=11"  # no multiple of an epoch's steps


@pytest.fixture
def workspace(tmp_path):
    return planted_run(tmp_path / "run")


def train_and_kill(run):
    """Start the job with two workers; end all its processes once a saved state is on record."""
    words = [f"run={run}", *QUICK, *WORDS, SAVING, "launch.workers=2"]
    private = ["ray.address=local", "ray.num_cpus=2", "ray.object_store_mb=100"]
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), *words, *private]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    until = time.monotonic() + 120
    seen = []
    try:
        while not saved(run):
            assert job.poll() is None, "the job ended too early"
            assert time.monotonic() < until, "no saved state"
            time.sleep(0.02)
        seen = tree(job.pid)
    finally:
        end({*seen, *tree(job.pid)})
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.wait(timeout=20)


def saved(run):
    records = Path(run).glob("training/*/checkpoint_manager_snapshot.json")
    return any("checkpoint_2" in path.read_text() for path in records)  # named by date


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # Ray's own
def test_a_killed_training_ends_with_the_weights_of_one_left_alone(
    ray_cluster, workspace, tmp_path, caplog
):
    whole = tmp_path / "whole"
    shutil.copytree(workspace.run, whole)
    train_and_kill(workspace.run)
    assert not workspace.has("autoencoder")
    fewer = tmp_path / "fewer"
    shutil.copytree(workspace.run, fewer)
    weights = []
    for run, workers in ((whole, 0), (workspace.run, 2), (fewer, 1)):
        there = Workspace(str(run))
        caplog.clear()
        with caplog.at_level("INFO"):
            train(config(there, *WORDS, SAVING, f"launch.workers={workers}"))
        epochs = [m for m in caplog.messages if m.startswith("trained")]
        assert (len(epochs) == 4) is (run is whole), epochs
        weights.append(Autoencoder.open(there.current("autoencoder")).model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-4, rtol=1e-4, msg=name)
        torch.testing.assert_close(weights[2][name], value, atol=2e-3, rtol=1e-2, msg=name)
