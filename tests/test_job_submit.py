"""The three ways a platform engineer submits a job to a running cluster."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from raysys.store.builds import Workspace
from tests.support.processes import end, tree

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
            end(tree(process.pid))  # its own end takes half a minute
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


def started(address, *words):
    return subprocess.Popen(
        [BIN / "ray", "job", "submit", "--address", address, *words],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(job):
    """Return the exit status of a submitted job and what it printed."""
    out, _ = job.communicate(timeout=300)
    return job.returncode, out


def check(address, *words):
    status, out = ended(started(address, *words))
    assert status == 0, out[-2000:]


@pytest.mark.ray
@pytest.mark.slow
def test_jobs_submitted_in_all_three_forms_build_on(head, tmp_path, small_log):
    run = f"run={tmp_path / 'run'}"
    mistyped = started(head, "jobs/train.py", run, "optim.epoch=1")
    uploaded = ("--working-dir", ".", "--", "python", "jobs/prepare.py")
    check(head, *uploaded, run, f"source={small_log}")
    status, out = ended(mistyped)
    assert status != 0
    assert "did you mean 'optim.epochs'" in out
    in_place = ("--", "python", "jobs/train.py")
    check(head, *in_place, run, "optim.epochs=1", "model=autoencoder", "launch.workers=1")
    literal = "jobs/train.py"
    check(head, literal, run, "optim.epochs=1", "launch.workers=0")
    workspace = Workspace(str(tmp_path / "run"))
    workspace.chain(workspace.current("codes"))
