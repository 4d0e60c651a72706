"""The three ways a platform engineer submits a job to a running cluster."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from raysys.store.builds import Workspace

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
START_TIMEOUT_S = 90


def free_port():
    """Return a port below Ray's worker range 10002-19999 that nothing listens on."""
    for port in range(8300, 9900, 7):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no free port")


def environment():
    env = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
    env.pop("RAY_ADDRESS", None)
    return env | {"RAY_AUTH_MODE": "disabled"}


@pytest.fixture(scope="module")
def head():
    """Run `ray start --head --block` in the repository root; end that process, nothing else."""
    dashboard = free_port()
    words = [
        *("start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"),
        *("--port=0", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        f"--dashboard-agent-listen-port={dashboard + 3}",  # the session's cluster has the default
        "--object-store-memory=200000000",
    ]
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
        (Path(folder) / "start.log").open("w") as log,
    ):
        process = subprocess.Popen(
            [BIN / "ray", *words, f"--temp-dir={folder}"],  # short: a socket's path has 107 bytes
            cwd=ROOT,
            env=environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield wait_for(f"http://127.0.0.1:{dashboard}", process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def wait_for(address, process):
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "ray start ended"
        done = subprocess.run(
            [BIN / "ray", "job", "list", "--address", address],
            env=environment(),
            capture_output=True,
        )
        if done.returncode == 0:
            return address
        time.sleep(1)
    raise TimeoutError(address)


def submit(address, *words):
    return subprocess.run(
        [BIN / "ray", "job", "submit", "--address", address, *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.ray
@pytest.mark.slow
def test_jobs_submitted_in_all_three_forms_build_on(head, tmp_path, small_log):
    run = f"run={tmp_path / 'run'}"
    uploaded = submit(
        head,
        *("--working-dir", ".", "--", "python", "jobs/prepare.py"),
        *(run, f"source={small_log}"),
    )
    assert uploaded.returncode == 0, uploaded.stdout[-2000:]
    in_place = submit(
        head,
        *("--", "python", "jobs/train.py"),
        *(run, "optim.epochs=1", "model=autoencoder"),
    )
    assert in_place.returncode == 0, in_place.stdout[-2000:]
    literal = submit(head, "jobs/train.py", run, "optim.epochs=1")
    assert literal.returncode == 0, literal.stdout[-2000:]
    workspace = Workspace(str(tmp_path / "run"))
    workspace.chain(workspace.current("codes"))
    refused = submit(head, "jobs/train.py", run, "optim.epoch=1")
    assert refused.returncode != 0
    assert "did you mean 'optim.epochs'" in refused.stdout
