"""Where the workers of a training find room: what each takes, and how many the nodes hold."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from raysys.errors import ConfigError

if TYPE_CHECKING:
    from raysys.cluster.train_workers import LaunchConfig

log = logging.getLogger(__name__)

Resources = Mapping[str, float]
Nodes = Mapping[str, Resources]  # of the cluster, by name

_LEAST = 1e-4  # of a resource, Ray's unit
_SETTLE_S = 5.0  # until what an earlier training held is free again, at most


def refuse_unplaceable(cfg: LaunchConfig, nodes: Nodes, *, concurrent: int = 1) -> None:
    """Refuse workers for which the nodes have no room, one by one, before anything waits for it.

    Args:
        cfg: how many workers each training has.
        nodes: {name: resources} of the cluster.
        concurrent: trainings at a time.

    Raises:
        ConfigError: with the arithmetic.
    """
    if cfg.most == 0:
        return
    needs = needs_of(cfg, nodes)
    wanted = cfg.fewest * concurrent
    if _held(nodes, needs) >= wanted:
        return
    beside = f" with concurrent={concurrent}" if concurrent > 1 else ""
    raise ConfigError(f"launch.workers={spelled(cfg)}{beside} needs {sum_of(wanted, nodes, needs)}")


def needs_of(cfg: LaunchConfig, nodes: Nodes) -> dict[str, float]:
    """Return what a worker takes: a CPU or its share of all, and with GPUs one of these."""
    totals = {name: sum(node.get(name, 0.0) for node in nodes.values()) for name in ("CPU", "GPU")}
    if totals["GPU"] >= cfg.fewest if cfg.gpu is None else cfg.gpu:
        return {"CPU": gpu_worker_cpus(list(nodes.values())), "GPU": 1.0}
    return {"CPU": _share(totals["CPU"] / cfg.fewest)}


def placed(cfg: LaunchConfig, nodes: Nodes, workers: int) -> dict[str, int]:
    """Return how many of so many workers each node gets."""
    needs = needs_of(cfg, nodes)
    return filled({name: _room(node, needs) for name, node in nodes.items()}, workers)


def filled(rooms: Mapping[str, int], workers: int) -> dict[str, int]:
    """Return how many of so many workers each node gets: the roomiest is filled first."""
    found, left = {}, workers
    for name in sorted(rooms, key=lambda name: -rooms[name]):
        found[name] = min(left, rooms[name])
        left -= found[name]
    return found


def most_now(cfg: LaunchConfig, nodes: Nodes, free: Callable[[], Nodes]) -> int:
    """Return how many workers a training may ask for, beside what else the nodes do.

    Train counts what nodes have in all. It would ask for as many, and wait without end for what
    others hold, although fewer find room.

    Args:
        cfg: how many there are to be.
        nodes: {name: resources} of the cluster.
        free: the same of what nobody holds; asked again for some seconds where it is less, as the
            workers of a training that has just ended may hold it.
    """
    needs = needs_of(cfg, nodes)
    wanted, until = min(cfg.most, _held(nodes, needs)), time.monotonic() + _SETTLE_S
    if cfg.fewest == cfg.most or wanted <= cfg.fewest:
        return cfg.most
    while (room := _held(free(), needs)) < wanted:
        if time.monotonic() >= until:
            most = max(room, cfg.fewest)
            log.warning(
                "launch.workers=%s: %d at most, as the nodes have room for %d of %d now",
                *(spelled(cfg), most, room, wanted),
            )
            return most
        time.sleep(_SETTLE_S / 10)
    return cfg.most


def sum_of(wanted: int, nodes: Nodes, needs: Resources) -> str:
    """Return how many workers are wanted, what each takes, and how many the nodes hold."""
    each = " and ".join(f"{amount:.4g} {name}" for name, amount in needs.items())
    held = ", ".join(f"{name}: {_room(node, needs)}" for name, node in nodes.items())
    return f"{wanted} workers of {each}; the nodes hold {_held(nodes, needs)} ({held})"


def spelled(cfg: LaunchConfig) -> str:
    """Return `launch.workers` as it is given."""
    return str(cfg.fewest if cfg.workers is None else cfg.workers).replace(" ", "")


def gpu_worker_cpus(nodes: Sequence[Resources]) -> float:
    """Return the CPUs of a worker with a GPU: half of what its node has for each.

    Closed forms and factors are solved on them; the other half is for the rest of the job. Where
    half would be less than one, it is one, or what there is.

    Args:
        nodes: resources of the cluster's nodes; the poorest one with a GPU decides.
    """
    shares = [node.get("CPU", 0) / node["GPU"] for node in nodes if node.get("GPU")]
    share = min(shares, default=1.0)
    return _share(share) if share < 1 else max(1.0, share // 2)


def _held(nodes: Nodes, needs: Resources) -> int:
    return sum(_room(node, needs) for node in nodes.values())


def _room(node: Resources, needs: Resources) -> int:
    """Return how many workers a node holds, as Train divides."""
    held = [int(node.get(name, 0.0) // amount) for name, amount in needs.items() if amount]
    return min(held, default=0)


def _share(cpus: float) -> float:
    """Return at most one CPU; of less than one a little less, so that the last one fits, too."""
    return 1.0 if cpus >= 1 else max(0.0, (math.ceil(round(cpus / _LEAST, 6)) - 1) * _LEAST)
