"""Temporary folders and files whose names say which process made them, so that gc can tell.

    $TMPDIR/raysys-<what>-<pid>.<started>.<namespace>.<random>

Those of another process namespace that share the folder, and those whose names say nothing, are
taken for left behind once they are a day old.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME = re.compile(r"raysys-[a-z]+-(\d+)\.(\d+)\.(\d+)\.\w+")
_OLD_S = 24 * 3600.0


def prefix(what: str) -> str:
    """Return how the names of this process's temporary files begin.

    Args:
        what: lower-case letters.
    """
    pid = os.getpid()
    return f"raysys-{what}-{pid}.{started(pid) or 0}.{_namespace()}."


def temporary_folder(what: str) -> Path:
    """Make a folder that its maker removes, and gc where that one died."""
    return Path(tempfile.mkdtemp(prefix=prefix(what)))


@contextmanager
def temporary(what: str) -> Iterator[Path]:
    """Give a folder that goes with the block."""
    with tempfile.TemporaryDirectory(prefix=prefix(what)) as folder:
        yield Path(folder)


def left_behind() -> Iterator[tuple[Path, int]]:
    """Yield (path, bytes) of what was left in the folder for temporary files of this host."""
    for path in sorted(Path(tempfile.gettempdir()).glob("raysys-*")):
        with suppress(OSError):
            if path.lstat().st_uid != os.getuid():  # in a folder that users share
                continue
            match = _NAME.fullmatch(path.name)
            if match is not None and int(match.group(3)) == _namespace():
                gone = not runs(int(match.group(1)), int(match.group(2)))
            else:
                gone = time.time() - newest(path) > _OLD_S
            if gone:
                yield path, size_of(path)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    if not path.is_dir():
        return path.stat().st_size
    total = 0
    for each in path.rglob("*"):
        with suppress(OSError):
            total += each.stat().st_size if each.is_file() else 0
    return total


def newest(path: Path) -> float:
    """Return when a file, or anything in a folder, was written last, in seconds since 1970."""
    last = 0.0
    for each in (path, *path.rglob("*")):
        with suppress(OSError):
            last = max(last, each.lstat().st_mtime)
    return last


def remove(path: Path) -> bool:
    """Delete a file or folder; tell whether it is gone."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return not os.path.lexists(path)


def runs(pid: int, since: int) -> bool:
    """Tell whether the process that started then runs; one that hides its state does."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return started(pid) in (since, None)


def started(pid: int) -> int | None:
    """Return when a process of this host started, in ticks; 0 if it ended, None if it hides."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if fields[0] in "ZX" else int(fields[19])


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino
