"""Questions to every node of the cluster, which are answered although all its CPUs are taken."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import ray.exceptions
from ray._private import state, worker
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ANSWER_S = 60.0
"""Seconds until a node that says nothing counts as one that does not answer."""

_CLOCK_ROUNDS = 5
_CLOCK_S = 10.0


@dataclasses.dataclass(frozen=True)
class Node:
    """A node that the cluster takes for alive.

    Attributes:
        ident: Ray's, in hex.
        name: its host, told apart where several nodes have the same one.
        address: its IP address.
        resources: what it offers.
    """

    ident: str
    name: str
    address: str
    resources: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a node said.

    Attributes:
        said: the function's result; None where there is none.
        problem: why there is none, else "".
        ahead_s: seconds that its clock is ahead of this process's; None: not known.
        ahead_within_s: how far off that may be.
    """

    said: Any = None
    problem: str = ""
    ahead_s: float | None = None
    ahead_within_s: float = 0.0


class _Prober:
    """Lives on a node for as long as the questions take."""

    def ask(self, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        return function(*arguments)

    def now(self) -> float:
        return time.time()


def alive_nodes() -> list[Node]:
    """Return the nodes that are alive, in the order of their names."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    hosts = [node["NodeManagerHostname"] for node in alive]
    found = []
    for host, node in zip(hosts, alive, strict=True):
        ident = node["NodeID"]
        name = host if hosts.count(host) == 1 else f"{host} {ident[:6]}"
        found.append(Node(ident, name, node["NodeManagerAddress"], node["Resources"]))
    return sorted(found, key=lambda node: node.name)


def node_resources() -> dict[str, Mapping[str, float]]:
    """Return {name: resources} of the nodes that are alive."""
    return {node.name: node.resources for node in alive_nodes()}


def free_resources() -> dict[str, Mapping[str, float]]:
    """Return {name: resources that nobody holds} of the nodes that are alive."""
    free = state.available_resources_per_node()
    return {node.name: free.get(node.ident, {}) for node in alive_nodes()}


def ask_nodes(
    nodes: Sequence[Node],
    function: Callable[..., Any],
    arguments: Sequence[Any],
    *,
    timeout_s: float = ANSWER_S,
) -> dict[str, Answer]:
    """Call a function on every node at the same time.

    The calls take no CPU, so that nodes answer which have none left.

    Args:
        nodes: of `alive_nodes`.
        function: importable on the nodes; what it raises becomes the answer's `problem`.
        arguments: of the function; picklable.
        timeout_s: for all of them together.

    Returns:
        {name: answer} in the order of the nodes.
    """
    prober = ray.remote(num_cpus=0, max_restarts=0)(_Prober)
    actors = {}
    for node in nodes:
        place = NodeAffinitySchedulingStrategy(node.ident, soft=False)
        actors[node.name] = prober.options(scheduling_strategy=place).remote()
    try:
        calls = {name: actor.ask.remote(function, arguments) for name, actor in actors.items()}
        ray.wait([*calls.values()], num_returns=len(calls), timeout=timeout_s)
        return {name: _answer(actors[name], call, timeout_s) for name, call in calls.items()}
    finally:
        for actor in actors.values():
            ray.kill(actor)


def _answer(actor: Any, call: Any, timeout_s: float) -> Answer:
    try:
        said = ray.get(call, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return Answer(problem=f"does not answer within {timeout_s:g} s")
    except ray.exceptions.RayTaskError as error:
        cause = " ".join(str(error.cause).split())
        return Answer(problem=f"{type(error.cause).__name__}: {cause}")
    except ray.exceptions.RayError as error:
        return Answer(problem=(str(error).strip().splitlines() or [type(error).__name__])[0])
    return dataclasses.replace(_clock(actor), said=said)


def _clock(actor: Any) -> Answer:
    """Return how far a node's clock is ahead, by the quickest of some round trips."""
    best = Answer()
    for _ in range(_CLOCK_ROUNDS):
        sent = time.time()
        try:
            there = ray.get(actor.now.remote(), timeout=_CLOCK_S)
        except ray.exceptions.RayError:
            break
        took = time.time() - sent
        if best.ahead_s is None or took / 2 < best.ahead_within_s:
            best = Answer(ahead_s=there - (sent + took / 2), ahead_within_s=took / 2)
    return best


def own_address() -> str | None:
    """Return the IP address that the cluster knows this process's node by."""
    address: str | None = getattr(worker._global_node, "node_ip_address", None)
    return address


def dashboard_url() -> str | None:
    """Return where the cluster's dashboard and job API are; None: it has none, as far as known."""
    node = worker._global_node
    address = getattr(node, "webui_url", None)
    return f"http://{address}" if address else None
