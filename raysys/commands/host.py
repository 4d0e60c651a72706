"""What this host has: memory that a process may still take, room on disks, limits."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

GIB = 1 << 30

_V2 = ("sys/fs/cgroup", "memory.max", "memory.current")
_V1 = ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
_OWN_GROUPS = "proc/self/cgroup"
_RECLAIMED = ("inactive_file", "total_inactive_file")  # of v2 and v1: given back when wanted
_RESERVED = 8  # of a host's memory, that part is the system's, at most 1 GiB
_NO_LIMIT = 1 << 60  # v1 says nearly 2^63 where there is none


def memory_bytes(root: Path = Path("/")) -> tuple[int, int]:
    """Return the memory of this host in bytes: all that there is, and what is free.

    The smallest of what the kernel says and of what the control groups still allow that this
    process is in: those of a container, or of a batch system's job.

    Args:
        root: of the file system that is asked, for tests.

    Returns:
        (0, 0) where nothing says it.
    """
    fields = {}
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            fields[name] = int(rest.split()[0]) << 10
        total, free = fields["MemTotal"], fields["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return 0, 0
    for folder, limit, usage in _groups(root):
        most, used = _number(folder / limit), _number(folder / usage)
        if most is not None and used is not None and most < _NO_LIMIT:
            total = min(total, most)
            free = min(free, max(most - used + _reclaimable(folder), 0))
    return total, free


def room_bytes() -> int:
    """Return the bytes that jobs may have of this host, whoever holds them now; 0: not known."""
    total, _ = memory_bytes()
    return total - min(total // _RESERVED, GIB)


def disk_free_bytes(path: Path) -> int:
    """Return the room that is left where a path is, or will be."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(there).free


def open_files_limit() -> int:
    """Return how many files a process may open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def gib(size: float) -> str:
    """Return bytes in words."""
    return f"{size / GIB:.1f} GiB"


def _groups(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield (folder, file of the limit, file of the use) of every group that limits this process.

    Inside a container the paths of `/proc/self/cgroup` may be those of the host, of which nothing
    is mounted; the top is always there.
    """
    try:
        lines = [line.split(":", 2) for line in (root / _OWN_GROUPS).read_text().splitlines()]
    except OSError:
        lines = []
    own = {"v1" if "memory" in line[1].split(",") else line[1]: line[2] for line in lines}
    for (top, limit, usage), path in ((_V2, own.get("")), (_V1, own.get("v1"))):
        below = PurePosixPath((path or "/").lstrip("/"))
        for part in (below, *below.parents):
            if ".." not in part.parts:  # of another namespace
                yield root / top / part, limit, usage


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None


def _reclaimable(folder: Path) -> int:
    try:
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        sizes = {name: int(size) for name, size in pairs}
    except (OSError, ValueError):
        return 0
    return max(sizes.get(name, 0) for name in _RECLAIMED)
