#!/usr/bin/env python
"""`ray up cluster.yaml` on two hosts: network namespaces with a process table, /tmp and HOME each.

    sudo tests/long/ray_up.py

It brings the cluster up, submits a job through the head's loopback, brings it up again (nothing is
installed twice) and down. Needs root, sshd, rsync and iproute2, and takes a few minutes. The
environment of this checkout stands in for that of the hosts, which have no way to a package index.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.prefix) / "bin"
HEAD, WORKER, HERE = "10.78.9.1", "10.78.9.2", "10.78.9.254"
BRIDGE = "raysysup0"
PORT = 18265
JOB = """
import os, ray, socket, time, resource, raysys
ray.init()
deadline = time.time() + 240
while len([n for n in ray.nodes() if n['Alive']]) < 2 and time.time() < deadline:
    time.sleep(1)
@ray.remote(num_cpus=1, scheduling_strategy='SPREAD')
def where():
    time.sleep(2)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return socket.gethostname(), limit, os.environ.get('GLOO_SOCKET_IFNAME'), raysys.__file__
print('HOSTS', sorted(set(ray.get([where.remote() for _ in range(4)]))))
"""


def sh(*words: str, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, check=True, text=True, **kwargs)


def host_script(folder: Path, name: str) -> str:
    """Return what makes a process a host of its own, then its ssh server."""
    return f"""
        set -e
        hostname {name}
        mount -t tmpfs tmpfs /tmp
        mount --bind {folder}/etc-hosts /etc/hosts
        mount --bind {folder}/passwd /etc/passwd
        mkdir -p /run/sshd
        exec /usr/sbin/sshd -D -e -f {folder}/sshd_config
    """


def make_home(folder: Path, name: str, public: str, stamp: str) -> None:
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    (home / ".ssh" / "authorized_keys").write_text(public)
    environment = home / "raysys" / ".venv"
    environment.mkdir(parents=True)
    for part in ("bin", "lib", "lib64", "include", "pyvenv.cfg"):
        (environment / part).symlink_to(Path(sys.prefix) / part)
    (environment / ".installed").write_text(stamp)
    (folder / "etc-hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
    (folder / "passwd").write_text(
        f"root:x:0:0:root:{home}:/bin/bash\nsshd:x:100:65534::/run/sshd:/bin/false\n"
    )
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key"))
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nPermitRootLogin yes\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nPidFile none\nMaxStartups 100\n"
    )


@contextlib.contextmanager
def hosts(base: Path, public: str) -> Iterator[None]:
    """Run both hosts on a bridge; what was started and made here is ended and removed."""
    files = (ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()
    stamp = sh("sha256sum", input=files.decode(), capture_output=True).stdout[:16]
    servers: list[subprocess.Popen[str]] = []
    names = {"raysys-head": HEAD, "raysys-worker": WORKER}
    try:
        sh("ip", "link", "add", BRIDGE, "type", "bridge")
        sh("ip", "addr", "add", f"{HERE}/24", "dev", BRIDGE)
        sh("ip", "link", "set", BRIDGE, "up")
        for number, (name, address) in enumerate(names.items()):
            make_home(base / name, name, public, stamp)
            inside, outside = f"raysysup{number}i", f"raysysup{number}o"
            sh("ip", "netns", "add", name)
            sh("ip", "link", "add", outside, "type", "veth", "peer", "name", inside)
            sh("ip", "link", "set", outside, "master", BRIDGE, "up")
            sh("ip", "link", "set", inside, "netns", name)
            sh("ip", "-n", name, "addr", "add", f"{address}/24", "dev", inside)
            sh("ip", "-n", name, "link", "set", inside, "up")
            sh("ip", "-n", name, "link", "set", "lo", "up")
            words = ["ip", "netns", "exec", name, "unshare", "--pid", "--fork", "--kill-child"]
            words += ["--mount", "--uts", "--mount-proc", "bash", "-c"]
            log = (base / f"{name}.log").open("w")
            script = host_script(base / name, name)
            servers.append(subprocess.Popen([*words, script], stderr=log, text=True))
        yield
    finally:
        for server in servers:
            server.kill()  # and with it every process of its host
            server.wait()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)
        subprocess.run(["ip", "link", "del", BRIDGE], check=False)


def config(base: Path) -> dict:
    """Return cluster.yaml with the four edits that it asks for."""
    settings = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    settings["provider"] |= {"head_ip": HEAD, "worker_ips": [WORKER]}
    settings["auth"] = {"ssh_user": "root", "ssh_private_key": str(base / "key")}
    settings["max_workers"] = 1
    settings["rsync_exclude"] += ["shared", ".mypy_cache", ".ruff_cache"]
    return settings


def main() -> None:
    base = Path(tempfile.mkdtemp(prefix="rayup", dir="/var/tmp"))
    home = base / "client"
    (home / ".ray").mkdir(parents=True)
    environment = {**os.environ, "HOME": str(home), "RAY_TMPDIR": str(base / "ray")}
    environment |= {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_UP_enable_autoscaler_v2": "1"}
    (home / ".raysys.env").touch(mode=0o600)
    (home / ".raysys.env").write_text("PYTHONPATH=$HOME/raysys\nAWS_ACCESS_KEY_ID=only-a-name\n")
    sh("ray", "get-auth-token", "--generate", env=environment, stdout=subprocess.DEVNULL)
    sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(base / "key"))
    path = base / "cluster.yaml"
    path.write_text(yaml.safe_dump(config(base)))
    up = ["ray", "up", "--yes", "--no-config-cache", str(path)]
    try:
        with hosts(base, (base / "key.pub").read_text()):
            begin = time.monotonic()
            sh(*up, env=environment, cwd=ROOT, timeout=800)
            print(f"UP seconds={time.monotonic() - begin:.0f}", flush=True)
            forward = ["ray", "dashboard", str(path), "--port", str(PORT), "--no-config-cache"]
            tunnel = subprocess.Popen(forward, env=environment, cwd=ROOT, start_new_session=True)
            try:
                submitted = environment | {"RAY_AUTH_MODE": "token"}
                submitted["RAY_ADDRESS"] = f"http://localhost:{PORT}"
                code = base64.b64encode(JOB.encode()).decode()
                words = f"import base64; exec(base64.b64decode('{code}'))"
                job = ["ray", "job", "submit", "--", "python", "-c", words]
                for _ in range(60):
                    done = subprocess.run(
                        job, env=submitted, cwd=base, capture_output=True, text=True, timeout=600
                    )
                    if "HOSTS" in done.stdout or "Failed to connect" not in done.stderr:
                        break
                    time.sleep(2)
                print(done.stdout[-3000:], done.stderr[-3000:], flush=True)
                assert all(
                    f"('{name}', " in done.stdout for name in ("raysys-head", "raysys-worker")
                )
                refused = {k: v for k, v in submitted.items() if k != "RAY_AUTH_MODE"}
                done = subprocess.run(
                    ["ray", "job", "list"],
                    env=refused | {"HOME": "/nonexistent"},
                    cwd=base,
                    capture_output=True,
                    text=True,
                    timeout=100,
                )
                assert done.returncode != 0
                print("WITHOUT A TOKEN", done.returncode, done.stderr.strip()[-200:], flush=True)
            finally:
                os.killpg(tunnel.pid, 15)
                tunnel.wait()
            begin = time.monotonic()
            sh(*up, env=environment, cwd=ROOT, timeout=800)
            print(f"UP AGAIN seconds={time.monotonic() - begin:.0f}", flush=True)
            sh("ray", "down", "--yes", str(path), env=environment, cwd=ROOT, timeout=300)
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
