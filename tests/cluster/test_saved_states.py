"""States of a training go to the storage while it goes on, and only whole ones count."""

import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from ray.train.torch import TorchTrainer

from raysys.commands.train import train
from raysys.errors import BuildError
from tests.support.faults import FaultyProxy
from tests.support.training import config, planted_run

# five steps an epoch: the first state is of the second epoch, the second one of the third
WORDS = ("model=autoencoder", "refit=none", "optim.epochs=4", "optim.patience=0")
SAVING = ("optim.checkpoint_steps=7", "launch.workers=1")


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # Ray's own
def test_a_training_goes_on_while_its_state_is_on_the_way(ray_cluster, s3_bucket, tmp_path, caplog):
    server = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    proxy = FaultyProxy(server.hostname, server.port)
    options = f"endpoint_override={proxy.address}&scheme=http&region=us-east-1"
    bucket = s3_bucket.replace("://", "://test:test@")  # for workers of any environment
    workspace = planted_run(f"{bucket}/{tmp_path.name}/run?{options}", cache_dir=tmp_path / "cache")
    went_on = []

    def hold(method, path, number):
        """Keep the first state for as long as a client waits, and when it asks again."""
        if method in ("PUT", "POST") and "state.pt" in path and not any(went_on):
            second = wait_for(lambda: any("phase=0 epoch=2" in m for m in caplog.messages))
            went_on.append(second)

    proxy.fault = hold
    with caplog.at_level("INFO"):
        train(config(workspace, *WORDS, *SAVING))
    assert went_on
    assert any(went_on), "the second epoch ended only after its state was stored"
    assert workspace.has("autoencoder")
    proxy.close()
    assert not list(Path(tempfile.gettempdir()).glob("raysys-state.*"))


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # Ray's own
def test_a_record_that_ray_cannot_read_is_named(ray_cluster, tmp_path, monkeypatch, caplog):
    workspace = planted_run(str(tmp_path / "run"), cache_dir=tmp_path / "cache")
    cfg = config(workspace, *WORDS, *SAVING)
    with monkeypatch.context() as patched, caplog.at_level("INFO"):
        patched.setattr(TorchTrainer, "fit", stopped)
        with pytest.raises(RuntimeError, match="stopped"):
            train(cfg)
    name = re.search(r"training started .*name=(\S+)", caplog.text)[1]
    record = tmp_path / "run" / "training" / name / "checkpoint_manager_snapshot.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text('{"version": 0, "ray_version": "2.1.0"}')
    with pytest.raises(BuildError, match=rf"left in \S+{name} \(.*2\.1\.0.*remove that folder"):
        train(cfg)
    shutil.rmtree(record.parent)
    train(cfg)
    assert workspace.has("autoencoder")


def stopped(trainer):
    raise RuntimeError("stopped")


def wait_for(condition, *, seconds=2.5):
    """Wait until a condition holds; tell whether it does."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return bool(condition())
