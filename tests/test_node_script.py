"""deploy/node.sh, which cluster.yaml and deploy/aws.yaml run on every machine."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def checkout(folder, *commands):
    """Return a folder with node.sh, and how to call it where only some commands are there."""
    (folder / "deploy").mkdir()
    shutil.copy(ROOT / "deploy" / "node.sh", folder / "deploy")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "bin").mkdir()
    words = "bash cat cut dirname env hostname sha256sum stat grep sed awk ip chmod basename"
    for name in words.split():
        (folder / "bin" / name).symlink_to(shutil.which(name) or "/bin/false")
    for name, script in commands:
        path = folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    (folder / "home").mkdir()
    return folder


def node(folder, *words, **environment):
    return subprocess.run(
        [folder / "deploy" / "node.sh", *words],
        env={"PATH": str(folder / "bin"), "HOME": str(folder / "home"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_machine_with_an_old_python_is_told_what_to_install(tmp_path):
    old = ("python3", 'case "$1" in --version) echo Python 3.10.12;; *) exit 1;; esac')
    done = node(checkout(tmp_path, old), "install")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "needs Python 3.11 to 3.13, has Python 3.10.12" in line
    assert "apt-get install python3.11" in line


def test_a_machine_without_a_compiler_is_told_so(tmp_path):
    done = node(checkout(tmp_path, ("python3.12", "exit 0")), "install")
    assert (done.returncode, "g++" in done.stderr) == (1, True)


def test_a_machine_installs_once(tmp_path):
    pip = ("pip", 'echo "$@" >>"$HOME/calls"')
    made = '[ "$2" != venv ] || mkdir -p .venv/bin; [ "$1" != -c ] || exit 0; echo Python 3.12.1'
    folder = checkout(tmp_path, pip, ("g++", "exit 0"), ("python3.12", made))
    (folder / "bin" / "mkdir").symlink_to(shutil.which("mkdir"))
    assert node(folder, "install").returncode == 0
    calls = (folder / "home" / "calls").read_text().splitlines()
    assert len(calls) == 2
    assert all("--constraint constraints.txt" in call for call in calls)
    assert "installed already" in node(folder, "install").stdout
    assert (folder / "home" / "calls").read_text().splitlines() == calls
    (folder / "constraints.txt").write_text("torch==1\n")
    assert "installed with" in node(folder, "install").stdout


def test_ray_is_started_with_token_network_and_storage(tmp_path):
    shown = 'echo "$@ $RAY_AUTH_MODE $GLOO_SOCKET_IFNAME $NCCL_SOCKET_IFNAME $AWS_DEFAULT_REGION"'
    table = (
        'case "$*" in *route*) echo "10.0.0.1 dev eth7 src 10.0.0.9 uid 0";; '
        '*) echo "3: eth7 inet 10.0.0.9/24 scope global eth7";; esac'
    )
    folder = checkout(tmp_path, ("ray", shown))
    (folder / "bin" / "ip").unlink()
    (folder / "bin" / "ip").write_text(f"#!/bin/sh\n{table}\n")
    (folder / "bin" / "ip").chmod(0o755)
    home = folder / "home"
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("t")
    (home / ".raysys.env").write_text("AWS_DEFAULT_REGION=here\n")
    (home / ".raysys.env").chmod(0o644)
    words = ("ray", "start", "--address=10.0.0.1:6379")
    refused = node(folder, *words, RAY_HEAD_IP="10.0.0.1")
    assert (refused.returncode, "chmod 600" in refused.stderr) == (1, True)
    (home / ".raysys.env").chmod(0o600)
    done = node(folder, *words, RAY_HEAD_IP="10.0.0.1")
    assert done.stdout == (
        "start --address=10.0.0.1:6379 --node-ip-address=10.0.0.9 token eth7 eth7 here\n"
    )
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    head = node(folder, "ray", "start", "--head", RAY_CLOUD_INSTANCE_ID="10.0.0.9")
    assert "--head --node-ip-address=10.0.0.9 token eth7" in head.stdout
