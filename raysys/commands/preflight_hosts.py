"""Whether hosts have room for a job: what `preflight` says it needs against what is free there."""

from __future__ import annotations

import dataclasses
import functools
import logging
import socket
from typing import TYPE_CHECKING

import ray

from raysys.cluster.node_probes import alive_nodes, node_resources, own_address
from raysys.cluster.placement import filled, needs_of, placed
from raysys.cluster.sweep_runner import cpus_of_each
from raysys.commands import host
from raysys.commands.preflight import (
    MORE_MEMORY,
    NO_RATES,
    Need,
    Rates,
    Size,
    compressing,
    indexing,
    is_over,
    refusal,
    training,
)
from raysys.commands.train_phases import last_period
from raysys.compressor.model import WIDE_FACTOR, CompresSAEConfig
from raysys.data.profiles import ProfilesFacts
from raysys.errors import ConfigError

if TYPE_CHECKING:
    from raysys.cluster.train_workers import LaunchConfig
    from raysys.commands.train import TrainConfig

log = logging.getLogger(__name__)

_LONG_S = 600.0  # of a training that more hosts are worth their start for


def size_of(facts: ProfilesFacts) -> Size:
    """Return what a training on profiles goes over."""
    n_items = max(facts.catalogue[period] for period in ("val", "test"))
    cells = sum(facts.n_cells.values())
    return Size(n_items, facts.n_users, cells, len(facts.levels))


def hosts_of(
    launch: LaunchConfig, *, concurrent: int = 1, fewest: bool = True
) -> list[tuple[str, int, int]]:
    """Return (name, bytes for a job, workers on it) of the hosts of trainings.

    Of this host it is known what it has, of the others what they offer to Ray.

    Args:
        launch: of each training.
        concurrent: trainings at a time.
        fewest: without which nothing trains, else all that find room.
    """
    if not ray.is_initialized():
        return [(socket.gethostname(), host.room_bytes(), concurrent)]
    nodes = {node.name: node for node in alive_nodes()}
    resources = {name: node.resources for name, node in nodes.items()}
    if launch.most:
        workers = launch.fewest if fewest else launch.most
        here = placed(launch, resources, workers * concurrent)
    elif concurrent > 1:
        cpus = cpus_of_each(concurrent, resources)
        here = filled(
            {n: int(has.get("CPU", 0) // cpus) for n, has in resources.items()}, concurrent
        )
    else:
        return [(socket.gethostname(), host.room_bytes(), 1)]
    own = own_address()
    return [
        (
            name,
            host.room_bytes() if node.address == own else int(node.resources.get("memory", 0.0)),
            here[name],
        )
        for name, node in nodes.items()
        if here[name]
    ]


def refuse_oversized(cfg: TrainConfig, facts: ProfilesFacts, *, concurrent: int = 1) -> None:
    """Refuse trainings that a host has too little memory for, before anything is started.

    What other processes hold now may be gone soon: where that alone is in the way, a line warns. On
    GPUs it is their memory that counts, which is not looked at.

    Args:
        cfg: of each training.
        facts: of the profiles.
        concurrent: trainings at a time.

    Raises:
        ConfigError: with what is needed, what is there, and the setting that would fit.
    """
    launch = cfg.launch
    if _on_gpus(launch):
        return
    told = functools.partial(_short_of_memory, cfg, facts, concurrent=concurrent)
    hosts = hosts_of(launch, concurrent=concurrent)
    never = told(hosts)
    if never is not None:
        raise ConfigError(never)
    if launch.most > launch.fewest:
        tight = told(hosts_of(launch, concurrent=concurrent, fewest=False), workers=launch.most)
        if tight is not None:
            log.warning("memory is short where all workers find room: %s", tight)
    own, free = host.room_bytes(), host.memory_bytes()[1]
    now = [(name, min(room, free) if room == own else room, here) for name, room, here in hosts]
    short = told(now)
    if short is not None:
        log.warning("memory is short now: %s", short)


def with_workers(cfg: TrainConfig, facts: ProfilesFacts) -> TrainConfig:
    """Return settings of a training with the number of its workers where none is given.

    Two; one where there is one GPU, one CPU, or a host without the memory for two; one a host where
    there are more hosts and one worker would take longer than ten minutes. Weights do not depend on
    it but for the last digits.
    """
    if cfg.launch.workers is not None:
        return cfg

    def of(workers: int) -> TrainConfig:
        return dataclasses.replace(cfg, launch=dataclasses.replace(cfg.launch, workers=workers))

    nodes = node_resources()
    cpus, gpus = (sum(n.get(name, 0.0) for n in nodes.values()) for name in ("CPU", "GPU"))
    hosts = sum(node.get("CPU", 0.0) >= 1 for node in nodes.values())
    chosen, why = cfg.launch.most, ""
    if _on_gpus(cfg.launch):
        pass  # whose memory is not looked at
    elif gpus >= 1 and cfg.launch.gpu is not False:
        chosen, why = 1, "the nodes have one GPU"
    elif cpus < chosen:
        chosen, why = 1, "the nodes have one CPU"
    elif hosts > chosen and (seconds := estimate(of(1), facts).seconds) > _LONG_S:
        chosen, why = hosts, f"one a host, as one alone would take some {seconds / 60:.0f} min"
    elif _short_of_memory(of(chosen), facts, hosts_of(cfg.launch)) is not None:
        chosen, why = 1, "two do not fit into the memory of a host"
    if why:
        log.info("launch.workers=%d: %s", chosen, why)
    return of(chosen)


def refuse_compressing(n_items: int, dim: int, cfg: CompresSAEConfig) -> None:
    """Refuse codes of vectors [N, dim] that this host has too little memory for.

    Raises:
        ConfigError: with what is needed, what is there, and the setting that would fit.
    """
    room = host.room_bytes()
    need = compressing(n_items, dim, cfg, rates=NO_RATES).most
    if not is_over(need, room):
        _warn_of("coding", need)
        return
    atoms, active = cfg.sizes(n_items)
    advice = MORE_MEMORY
    while (atoms := atoms // 2) >= WIDE_FACTOR * active:
        smaller = dataclasses.replace(cfg, code_dim=atoms)
        if compressing(n_items, dim, smaller, rates=NO_RATES).most <= room:
            advice = f"compressor.code_dim={atoms} fits"
            break
    raise ConfigError(
        f"coding {n_items:,} vectors of {dim} dims needs {host.gib(need)}; {socket.gethostname()} "
        f"has {host.gib(room)} for it: {advice}"
    )


def refuse_indexing(n_items: int, dim: int, n_active: int, kind: str) -> None:
    """Refuse an index that this host has too little memory for.

    Raises:
        ConfigError: with what is needed, what is there, and the kind that would fit.
    """
    room = host.room_bytes()

    def need(kind: str) -> int:
        return indexing(n_items, dim, n_active, kind, rates=NO_RATES).most

    if not is_over(need(kind), room):
        _warn_of(f"kind={kind}", need(kind))
        return
    smaller = [other for other in ("ivf", "flat") if other != kind and need(other) <= room]
    advice = f"kind={smaller[0]} fits" if smaller else MORE_MEMORY
    raise ConfigError(
        f"kind={kind} over {n_items:,} items needs {host.gib(need(kind))}; {socket.gethostname()} "
        f"has {host.gib(room)} for it: {advice}"
    )


def estimate(cfg: TrainConfig, facts: ProfilesFacts) -> Need:
    """Return what the autoencoder's training would need, by the rates of this processor."""
    return training(
        size_of(facts),
        cfg.autoencoder,
        cfg.optim,
        workers=cfg.launch.most,
        rates=Rates.here(),
        phases=1 if last_period(facts.split, cfg.refit) == "val" else 2,
    )


def _short_of_memory(
    cfg: TrainConfig,
    facts: ProfilesFacts,
    hosts: list[tuple[str, int, int]],
    *,
    workers: int | None = None,
    concurrent: int = 1,
) -> str | None:
    """Return why a training does not fit these hosts, see `refusal`; None: it does."""
    return refusal(
        size_of(facts),
        cfg.autoencoder,
        cfg.optim,
        workers=cfg.launch.fewest if workers is None else workers,
        hosts=hosts,
        concurrent=concurrent,
    )


def _warn_of(what: str, need: int) -> None:
    """Warn where other processes hold what a job needs of this host."""
    free = host.memory_bytes()[1]
    if is_over(need, free):
        log.warning(
            "memory is short now: %s needs %s, %s are free", what, host.gib(need), host.gib(free)
        )


def _on_gpus(launch: LaunchConfig) -> bool:
    if launch.gpu is False or not launch.most or not ray.is_initialized():
        return False
    return "GPU" in needs_of(launch, node_resources())
