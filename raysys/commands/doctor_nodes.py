"""What the nodes of a cluster said of themselves, as checks of `raysys doctor`: a line each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raysys.cluster.node_probes import Answer, Node
from raysys.commands.host import GIB, gib

MIN_FREE_BYTES = 2 * GIB
_MIN_MEMORY_BYTES = GIB
_MIN_OPEN_FILES = 4096  # a worker has a connection to each of the others; Ray advises 65536
_SLOW_MB_PER_S = 20.0  # a saved state of a million items would take a minute
_SKEW_S = 2.0  # lists of the newest events go by clocks
_MOST_SKEW_S = 300.0  # object stores refuse requests that are a quarter of an hour off
_SHOWN = 6  # nodes in a line

Said = Mapping[str, Mapping[str, Any]]  # {node: what it said}, of those that answered


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: of the check.
        ok: None means that there was nothing to check, or that it may be as it is.
        finding: what was found.
        warns: where `ok` is None: somebody should look at it.
    """

    name: str
    ok: bool | None
    finding: str
    warns: bool = False


def node_checks(nodes: Sequence[Node], answers: Mapping[str, Answer]) -> list[Check]:
    """Return the checks of what the nodes said, see `doctor_node.look`."""
    said = {name: answer.said for name, answer in answers.items() if answer.said is not None}
    if not said:
        return [_answered(answers)]
    return [
        _answered(answers),
        _same_versions(said),
        _clocks(answers),
        _memory(said),
        _object_store(nodes, said),
        _limits(said),
        _storages(said),
        _shared(said),
        _ports(said),
        _gpus(nodes, said),
        _gloo(said),
        _tokens(said),
    ]


def listed(texts: Mapping[str, str], n_nodes: int) -> str:
    """Return {node: text} of some of the nodes in a line: node by node, or once what all say."""
    different = dict.fromkeys(texts.values())
    if len(different) == 1 and len(texts) == n_nodes:
        return next(iter(different)) + (f" on all {n_nodes}" if n_nodes > 1 else "")
    parts = [f"{name}: {text}" for name, text in texts.items()]
    more = f", and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return ", ".join(parts[:_SHOWN]) + more


def _of(said: Said, function: Callable[[Mapping[str, Any]], str | None]) -> dict[str, str]:
    """Return the texts that a function makes of what the nodes said, without Nones."""
    found = {name: function(one) for name, one in said.items()}
    return {name: text for name, text in found.items() if text is not None}


def _answered(answers: Mapping[str, Answer]) -> Check:
    silent = {name: answer.problem for name, answer in answers.items() if answer.said is None}
    if silent:
        return Check("nodes", False, listed(silent, len(answers)))
    return Check("nodes", True, f"{len(answers)} answer")


def _same_versions(said: Said) -> Check:
    packages = next(iter(said.values()))["versions"]
    wrong = []
    for package in packages:
        found = {name: one["versions"].get(package, "none") for name, one in said.items()}
        if len({*found.values()}) > 1:
            wrong.append(f"{package} ({listed(found, len(said))})")
    if wrong:
        return Check("same", False, f"versions differ: {'; '.join(wrong)}")
    shown = ", ".join(f"{name} {version}" for name, version in packages.items())
    return Check("same", True, shown)


def _clocks(answers: Mapping[str, Answer]) -> Check:
    known = {n: a for n, a in answers.items() if a.ahead_s is not None}
    off = {n: abs(a.ahead_s or 0.0) - a.ahead_within_s for n, a in known.items()}
    if not off:
        return Check("clocks", None, "not known")
    worst = max(off, key=off.__getitem__)
    text = f"{known[worst].ahead_s or 0.0:+.2f} s at most ({worst})"
    if off[worst] > _MOST_SKEW_S:
        return Check("clocks", False, f"{text}: object stores refuse such requests")
    if off[worst] > _SKEW_S:
        return Check("clocks", None, f"{text}: let them follow a time server", warns=True)
    return Check("clocks", True, text)


def _memory(said: Said) -> Check:
    texts = _of(
        said,
        lambda one: (
            f"{gib(one['memory_free_bytes'])} of {gib(one['memory_bytes'])} free"
            if one["memory_bytes"]
            else "not known"
        ),
    )
    few = [
        name
        for name, one in said.items()
        if one["memory_bytes"] and one["memory_free_bytes"] < _MIN_MEMORY_BYTES
    ]
    disk = [n for n, one in said.items() if one["disk_free_bytes"] < MIN_FREE_BYTES]
    text = listed(texts, len(said))
    if disk:
        rooms = _of(said, lambda one: gib(one["disk_free_bytes"]))
        return Check(
            "memory", False, f"{text}; disk: {listed({n: rooms[n] for n in disk}, len(said))} free"
        )
    return Check("memory", None if few else True, text, warns=bool(few))


def _object_store(nodes: Sequence[Node], said: Said) -> Check:
    sizes = {n.name: n.resources.get("object_store_memory", 0.0) for n in nodes if n.name in said}
    shm = {name: one["shm_bytes"] for name, one in said.items()}
    text = listed({name: gib(size) for name, size in sizes.items()}, len(said))
    small = {n: gib(shm[n]) for n, size in sizes.items() if shm[n] is not None and shm[n] < size}
    if small:
        text += f"; /dev/shm is smaller ({listed(small, len(said))}): objects lie on disk, raise it"
        return Check("objects", None, text, warns=True)
    return Check("objects", True, text)


def _limits(said: Said) -> Check:
    few = _of(said, lambda o: str(o["open_files"]) if o["open_files"] < _MIN_OPEN_FILES else None)
    if few:
        return Check(
            "files", None, f"open files: {listed(few, len(said))}: ulimit -n 65536", warns=True
        )
    return Check(
        "files", True, f"open files: {listed(_of(said, lambda o: str(o['open_files'])), len(said))}"
    )


def _storages(said: Said) -> Check:
    asked = {name: one["storage"] for name, one in said.items() if one["storage"]}
    if not asked:
        return Check("from nodes", None, "no run= given, or it is not shared")
    wrong = {n: one["problem"] for n, one in asked.items() if "problem" in one}
    if wrong:
        return Check("from nodes", False, listed(wrong, len(said)))
    rates = {
        n: f"{one['write_mb_per_s']:.0f}/{one['read_mb_per_s']:.0f}" for n, one in asked.items()
    }
    least = min(min(one["write_mb_per_s"], one["read_mb_per_s"]) for one in asked.values())
    slow = least < _SLOW_MB_PER_S
    text = f"MB/s written/read: {listed(rates, len(said))}{': slow' if slow else ''}"
    return Check("from nodes", None if slow else True, text, warns=slow)


def _shared(said: Said) -> Check:
    """Tell whether local paths are the same folders on all nodes."""
    missing = [name for name, one in said.items() if one["marker"] is False]
    if missing:
        return Check("shared", False, f"run= is another folder, or none, on {_names(missing)}")
    marks = {name: one["source"] for name, one in said.items() if one["source"] != ""}
    if len({*marks.values()}) > 1:
        lacking = [name for name, mark in marks.items() if mark is None]
        what = f"is not there on {_names(lacking)}" if lacking else "differs between the nodes"
        return Check("shared", False, f"source= {what}")
    local = any(one["marker"] for one in said.values()) or any(marks.values())
    return Check("shared", True if local else None, "all see the same" if local else "no paths")


def _ports(said: Said) -> Check:
    taken = [name for name, one in said.items() if one["port_free"] is False]
    if taken:
        return Check("port", None, f"the service's is taken on {_names(taken)}", warns=False)
    return Check("port", True, "the service's is free")


def _gpus(nodes: Sequence[Node], said: Said) -> Check:
    promised = {n.name: int(n.resources.get("GPU", 0)) for n in nodes if n.resources.get("GPU")}
    if not promised:
        return Check("gpus", None, "none: training on processors")
    found = {n: said[n]["gpus"] or {} for n in promised if n in said}
    lost = [n for n, one in found.items() if one.get("count", 0) < promised[n]]
    if lost:
        return Check("gpus", False, f"torch does not see all GPUs of {_names(lost)}")
    deaf = [n for n, one in found.items() if not one.get("nccl")]
    if deaf and len(promised) > 1:
        return Check("gpus", False, f"torch has no NCCL on {_names(deaf)}")
    return Check(
        "gpus", True, listed({n: f"{count} with NCCL" for n, count in promised.items()}, len(said))
    )


def _gloo(said: Said) -> Check:
    """Tell of hosts whose own name means loopback: others cannot connect to them there."""
    loopback = _of(
        said,
        lambda o: o["own_address"] if (o["own_address"] or "").startswith("127.") else None,
    )
    if len(said) < 2 or not loopback:
        return Check("names", True if said else None, "hosts know their own addresses")
    named = [name for name in loopback if said[name]["gloo_interface"]]
    interfaces = {name: said[name]["interface"] or "?" for name in loopback}
    text = f"the own name is loopback ({listed(loopback, len(said))})"
    if len(named) == len(loopback):
        return Check("names", True, f"{text}, but GLOO_SOCKET_IFNAME is set")
    advice = f"workers of a training talk over {listed(interfaces, len(said))} instead"
    return Check("names", None, f"{text}: {advice}", warns=True)


def _tokens(said: Said) -> Check:
    modes = {name: one["token"] for name, one in said.items() if one["token"] is not None}
    if not modes:
        return Check("token", None, "no cluster token")
    open_to_all = [name for name, mode in modes.items() if mode & 0o077]
    if open_to_all:
        text = f"~/.ray/auth_token is readable by others on {_names(open_to_all)}: chmod 600"
        return Check("token", None, text, warns=True)
    return Check("token", True, "~/.ray/auth_token is private")


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
