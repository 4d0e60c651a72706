"""What a node says of itself to `raysys doctor`; runs on the node, and raises nothing expected."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import socket
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from raysys.cluster.node_probes import own_address
from raysys.cluster.torch_setup import interface_of
from raysys.commands import host
from raysys.errors import RaysysError
from raysys.store.storage import Storage

PACKAGES = ("ray", "raysys", "torch", "numpy", "pyarrow", "hnswlib")
"""Whose versions have to be the same on all nodes."""

_PROBE_BYTES = 8 << 20
_HEAD_BYTES = 1 << 16  # of a source, which tells files apart
_SHM = Path("/dev/shm")


@dataclasses.dataclass(frozen=True)
class Question:
    """What the nodes are asked.

    Attributes:
        run: storage that they write to; "": none.
        cache_dir: where builds of an object store are fetched to.
        folder: of the run for the probes' files.
        marker: (name, content) of a file of the run that they should see; None: none.
        source: path of a local file that they should see; None: none.
        port: that a service would listen on.
        has_gpus: the cluster has some.
    """

    run: str = ""
    cache_dir: str | None = None
    folder: str = ""
    marker: tuple[str, str] | None = None
    source: str | None = None
    port: int = 0
    has_gpus: bool = False


def look(question: Question) -> dict[str, Any]:
    """Return what this node has and can, as plain values for a record."""
    address = own_address() or ""
    marker = _marker(question)
    total, free = host.memory_bytes()
    cache = question.cache_dir or tempfile.gettempdir()
    return {
        "versions": {"python": _python(), **{name: _version(name) for name in PACKAGES}},
        "memory_bytes": total,
        "memory_free_bytes": free,
        "disk_free_bytes": host.disk_free_bytes(Path(cache).expanduser()),
        "shm_bytes": _shm_bytes(),
        "open_files": host.open_files_limit(),
        "own_address": _own_address(),
        "address": address,
        "interface": interface_of(address) or None,
        "gloo_interface": os.environ.get("GLOO_SOCKET_IFNAME"),
        "token": token_mode(),
        "port_free": _is_free(question.port) if question.port else None,
        "storage": _storage(question) if question.run and marker is not False else None,
        "marker": marker,
        "source": source_mark(question.source) if question.source else "",
        "gpus": _gpus() if question.has_gpus else None,
    }


def token_mode() -> int | None:
    """Return the access bits of this user's cluster token; None: there is none."""
    try:
        return (Path.home() / ".ray" / "auth_token").stat().st_mode & 0o777
    except (OSError, RuntimeError):
        return None


def source_mark(path: str) -> str | None:
    """Return a mark of a file's size and first bytes; None: it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(_HEAD_BYTES)
            size = os.fstat(file.fileno()).st_size
    except OSError:
        return None
    return f"{size} {hashlib.sha256(head).hexdigest()[:16]}"


def _python() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _shm_bytes() -> int | None:
    try:
        room = os.statvfs(_SHM)
    except OSError:
        return None
    return room.f_frsize * room.f_blocks


def _own_address() -> str | None:
    """Return what the host's own name means here: what a process group connects to."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return None


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as handle:
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            handle.bind(("", port))
        except OSError:
            return False
    return True


def _storage(question: Question) -> dict[str, Any]:
    """Write, read back and delete a file of 8 MiB: MB/s of both, or the problem."""
    name = f"{question.folder}/probe-{secrets.token_hex(4)}"
    content = secrets.token_bytes(_PROBE_BYTES)
    try:
        storage = Storage(question.run, cache_dir=question.cache_dir)
        started = time.perf_counter()
        storage.write_atomic(name, content)
        written = time.perf_counter()
        back = storage.read(name)
        read = time.perf_counter()
        storage.remove(name)
    except (RaysysError, OSError) as error:
        return {"problem": " ".join(str(error).split())}
    if back != content:
        return {"problem": "what is read is not what was written"}
    mb = _PROBE_BYTES / 1e6
    return {
        "write_mb_per_s": round(mb / max(written - started, 1e-6), 1),
        "read_mb_per_s": round(mb / max(read - written, 1e-6), 1),
        "free_bytes": host.disk_free_bytes(Path(storage.root)) if storage.is_local else None,
    }


def _marker(question: Question) -> bool | None:
    """Tell whether this node sees the file that another one wrote."""
    if question.marker is None:
        return None
    name, content = question.marker
    try:
        return Storage(question.run, cache_dir=question.cache_dir).read(name) == content.encode()
    except (RaysysError, OSError):
        return False


def _gpus() -> dict[str, Any]:
    import torch

    return {
        "count": torch.cuda.device_count(),
        "nccl": torch.distributed.is_available() and torch.distributed.is_nccl_available(),
    }
