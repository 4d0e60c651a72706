"""Doctor: is this machine, cluster, storage and data fit for a run?"""

from __future__ import annotations

import dataclasses
import json
import logging
import secrets
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import ray
from packaging.requirements import Requirement

from raysys.autoencoder.config import Conv4RecConfig
from raysys.cluster.connect import connected
from raysys.cluster.node_probes import (
    Answer,
    Node,
    alive_nodes,
    ask_nodes,
    dashboard_url,
    node_resources,
)
from raysys.cluster.placement import refuse_unplaceable, spelled
from raysys.cluster.serve_config import ServeConfig
from raysys.cluster.train_workers import LaunchConfig
from raysys.commands.doctor_node import Question, look
from raysys.commands.doctor_nodes import MIN_FREE_BYTES, Check, node_checks
from raysys.commands.host import gib
from raysys.commands.preflight_hosts import estimate, refuse_oversized, with_workers
from raysys.commands.train import TrainConfig, sized
from raysys.config import JobConfig, local
from raysys.data.profiles import ProfilesFacts
from raysys.errors import ConfigError, RaysysError
from raysys.log.sources import list_files
from raysys.store.builds import StageResult, Workspace
from raysys.store.kinds import KINDS

log = logging.getLogger(__name__)

_DASHBOARD_S = 5.0


@dataclasses.dataclass
class DoctorConfig(JobConfig):
    """What to check; without `run` the storage checks are left out.

    Attributes:
        source: a log to open, as `prepare` would.
        launch: workers of a training, for which room is looked for.
        autoencoder: the model that time and memory are estimated for.
    """

    source: str | None = None
    launch: LaunchConfig = local(factory=LaunchConfig)
    autoencoder: Conv4RecConfig = dataclasses.field(default_factory=Conv4RecConfig)


def doctor(cfg: DoctorConfig) -> StageResult:
    """Run every check and report all of them.

    Returns:
        `extra` has the checks, and by node all that it said.

    Raises:
        ConfigError: at least one check failed; the message names them.
    """
    on_nodes, said = _of_cluster(cfg)
    checks = [
        _check("versions", _versions),
        _check("compiler", _compiler),
        *on_nodes,
        _check("storage", lambda: _storage(cfg)),
        _check("builds", lambda: _builds(cfg)),
        _check("data", lambda: _data(cfg)),
        _check("estimate", lambda: _estimate(cfg, joined=on_nodes[0].ok is not False)),
    ]
    for check in checks:
        mark = {True: "ok  ", False: "FAIL", None: "warn" if check.warns else "--  "}[check.ok]
        log.info("%s %-10s %s", mark, check.name, check.finding)
    failed = [check for check in checks if check.ok is False]
    if failed:
        raise ConfigError("; ".join(f"{check.name}: {check.finding}" for check in failed))
    shown = [dataclasses.asdict(check) for check in checks]
    return StageResult(extra={"checks": shown, "nodes": said})


def _check(name: str, function: Callable[[], tuple[bool | None, str]]) -> Check:
    try:
        return Check(name, *function())
    except (RaysysError, OSError, RuntimeError) as error:
        return Check(name, False, " ".join(str(error).split()))


def _of_cluster(cfg: DoctorConfig) -> tuple[list[Check], dict[str, Any]]:
    """Return the checks of the cluster and its nodes, and what these said."""
    try:
        with connected(cfg.ray):
            nodes = alive_nodes()
            answers = _ask(cfg, nodes)
            checks = [
                _check("cluster", _cluster),
                *node_checks(nodes, answers),
                _check("dashboard", _dashboard),
                _check("workers", lambda: _workers(cfg)),
            ]
    except (RaysysError, OSError, RuntimeError) as error:
        return [Check("cluster", False, " ".join(str(error).split()))], {}
    said = {
        name: {
            **(answer.said or {}),
            "problem": answer.problem or None,
            "clock_ahead_s": None if answer.ahead_s is None else round(answer.ahead_s, 4),
        }
        for name, answer in answers.items()
    }
    return checks, said


def _ask(cfg: DoctorConfig, nodes: Sequence[Node]) -> dict[str, Answer]:
    """Ask every node what it has; files that this leaves in the run are deleted."""
    storage = Workspace(cfg.run, cache_dir=cfg.cache_dir).storage if cfg.run else None
    folder, content = f".doctor-{secrets.token_hex(4)}", secrets.token_hex(8)
    question = Question(
        run=cfg.run,
        cache_dir=cfg.cache_dir,
        folder=folder,
        source=_local_file(cfg.source),
        port=ServeConfig.port,
        has_gpus=any(node.resources.get("GPU") for node in nodes),
    )
    try:
        if storage is not None and storage.is_local and len(nodes) > 1:
            storage.write_atomic(f"{folder}/marker", content)
            question = dataclasses.replace(question, marker=(f"{folder}/marker", content))
        return ask_nodes(nodes, look, [question])
    finally:
        if storage is not None and storage.has_folder(folder):
            storage.delete(folder)


def _local_file(source: str | None) -> str | None:
    """Return the first file of a source that is a local path."""
    if source is None or "://" in source:
        return None
    try:
        return list_files(source, any_ending=True)[0].uri
    except RaysysError:
        return source


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


def _cluster() -> tuple[bool, str]:
    resources = ray.cluster_resources()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    text = f"{len(nodes)} node(s), {resources.get('CPU', 0):g} CPUs, "
    text += gib(resources.get("memory", 0))
    gpus = resources.get("GPU", 0)
    free = ray.available_resources().get("CPU", 0)
    return True, text + (f", {gpus:g} GPUs" if gpus else "") + f"; {free:g} CPUs free"


def _dashboard() -> tuple[bool | None, str]:
    """Ask the job API of the cluster for its version."""
    url = dashboard_url()
    if url is None:
        return None, "none: jobs cannot be submitted here"
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=_DASHBOARD_S):
            return True, f"{url} takes jobs"
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return True, f"{url} takes jobs of those who have the token"
        return False, f"{url} answers {error.code}"
    except OSError as error:
        return False, f"{url} does not answer: {error}"


def _workers(cfg: DoctorConfig) -> tuple[bool | None, str]:
    """Tell whether the workers of a training find room, empty as the nodes may be."""
    refuse_unplaceable(cfg.launch, node_resources())
    return True, f"launch.workers={spelled(cfg.launch)} find room"


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
    text = f"{cfg.run} writes and reads, {gib(free)} free"
    return answer == {"ok": True} and free > MIN_FREE_BYTES, text


def _estimate(cfg: DoctorConfig, *, joined: bool) -> tuple[bool | None, str]:
    """Say what a training of the run's profiles would need, and whether hosts have that."""
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir) if cfg.run else None
    if workspace is None or not workspace.has("profiles"):
        return None, "no profiles yet"
    if not joined:
        return None, "no cluster"
    profiles = workspace.current("profiles")
    facts = ProfilesFacts.of(profiles)
    train = sized(TrainConfig(autoencoder=cfg.autoencoder, launch=cfg.launch), profiles)
    with connected(cfg.ray):
        train = with_workers(train, facts)
        refuse_oversized(train, facts)
    need = estimate(train, facts)
    return True, (
        f"training {facts.n_items:,} items with latent={train.autoencoder.latent}: "
        f"{gib(need.most)} a worker of {spelled(train.launch)}, {need.seconds / 60:.0f} min or so"
    )


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
