"""Doctor: is this machine, cluster, storage and data fit for a run?"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import ray
from packaging.requirements import Requirement

from raysys.cluster.connect import connected
from raysys.config import JobConfig
from raysys.errors import ConfigError, RaysysError
from raysys.log.sources import list_files
from raysys.store.builds import StageResult, Workspace
from raysys.store.kinds import KINDS

log = logging.getLogger(__name__)

_MIN_FREE_BYTES = 2 << 30


@dataclasses.dataclass
class DoctorConfig(JobConfig):
    """What to check; without `run` the storage checks are left out.

    Attributes:
        source: a log to open, as `prepare` would.
    """

    source: str | None = None


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the report; `ok` None means that there was nothing to check."""

    name: str
    ok: bool | None
    finding: str


def doctor(cfg: DoctorConfig) -> StageResult:
    """Run every check and report all of them.

    Raises:
        ConfigError: at least one check failed; the message names them.
    """
    checks = [
        _check("versions", _versions),
        _check("compiler", _compiler),
        _check("cluster", lambda: _cluster(cfg)),
        _check("storage", lambda: _storage(cfg)),
        _check("builds", lambda: _builds(cfg)),
        _check("data", lambda: _data(cfg)),
        _check("token", _token),
    ]
    for check in checks:
        mark = {True: "ok  ", False: "FAIL", None: "--  "}[check.ok]
        log.info("%s %-9s %s", mark, check.name, check.finding)
    failed = [check for check in checks if check.ok is False]
    if failed:
        raise ConfigError("; ".join(f"{check.name}: {check.finding}" for check in failed))
    return StageResult(extra={"checks": [dataclasses.asdict(check) for check in checks]})


def _check(name: str, function: Callable[[], tuple[bool | None, str]]) -> Check:
    try:
        return Check(name, *function())
    except (RaysysError, OSError, RuntimeError) as error:
        return Check(name, False, " ".join(str(error).split()))


def _versions() -> tuple[bool, str]:
    """Compare what is installed with what the package asks for."""
    wrong = []
    for line in metadata.requires("raysys") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is not installed")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name} {found} is not {wanted.specifier}")
    python = ".".join(map(str, sys.version_info[:3]))
    summary = f"python {python}, ray {metadata.version('ray')}, torch {metadata.version('torch')}"
    return not wrong, "; ".join(wrong) or summary


def _compiler() -> tuple[bool | None, str]:
    found = shutil.which("g++") or shutil.which("clang++")
    return True if found else None, found or "no C++ compiler: needed only to install hnswlib"


def _cluster(cfg: DoctorConfig) -> tuple[bool, str]:
    with connected(cfg.ray):
        resources = ray.cluster_resources()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        answer: int = ray.get(ray.remote(lambda: os.getpid()).remote(), timeout=60)
    memory_gib = resources.get("memory", 0) / (1 << 30)
    text = f"{len(nodes)} node(s), {resources.get('CPU', 0):g} CPUs, {memory_gib:.1f} GiB"
    gpus = resources.get("GPU", 0)
    return answer > 0, text + (f", {gpus:g} GPUs" if gpus else "")


def _storage(cfg: DoctorConfig) -> tuple[bool | None, str]:
    """Write, read back and delete a small file in the run; look at the room that is left."""
    if not cfg.run:
        return None, "no run= given"
    storage = Workspace(cfg.run, cache_dir=cfg.cache_dir).storage
    folder = f".doctor-{secrets.token_hex(4)}"
    storage.write_atomic(f"{folder}/probe.json", json.dumps({"ok": True}))
    answer = storage.read_json(f"{folder}/probe.json")
    storage.delete(folder)
    if not storage.is_local:
        return answer == {"ok": True}, f"{cfg.run} writes and reads"
    free = shutil.disk_usage(storage.root).free
    text = f"{cfg.run} writes and reads, {free / (1 << 30):.1f} GiB free"
    return answer == {"ok": True} and free > _MIN_FREE_BYTES, text


def _builds(cfg: DoctorConfig) -> tuple[bool | None, str]:
    """Check that the current builds are whole and belong together."""
    if not cfg.run:
        return None, "no run= given"
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    present = [kind for kind in KINDS if workspace.has(kind)]
    for kind in present:
        workspace.current(kind).verify()
    if present:
        workspace.chain(workspace.current(present[-1]))
    return (True, f"{', '.join(present)} verified") if present else (None, "none yet")


def _data(cfg: DoctorConfig) -> tuple[bool | None, str]:
    if cfg.source is None:
        return None, "no source= given"
    return True, f"{cfg.source}: {len(list_files(cfg.source))} file(s)"


def _token() -> tuple[bool | None, str]:
    """Warn about a cluster token that other users of the machine can read."""
    path = Path.home() / ".ray" / "auth_token"
    if not path.exists():
        return None, "no cluster token"
    if path.stat().st_mode & 0o077:
        return None, f"{path} is readable by others: chmod 600 {path}"
    return True, f"{path} is private"
