"""Where compiled loops are kept: by what they are made of, not by the path of their code.

numba keeps a loop beside its source, or under that path's hash. Each `ray job submit` with another
working directory, and each worker that unpacks one, would compile all loops again (half a minute).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    IndexDataCacheFile,
    UserWideCacheLocator,
)

_CHARS = 20  # of a hash in a name
_DAYS = 30.0  # since it was compiled: an older file goes when its loop is compiled once more


def keep(loop: Any, content: Callable[[], str]) -> None:
    """Let a loop be loaded from the disk, and written there once it is compiled.

    Without a folder that can be written to it is compiled in each process.

    Args:
        loop: numba's dispatcher.
        content: returns that of all files and constants that it is made of; asked for when the
            loop is first looked for.
    """
    try:
        loop._cache = _of(loop.py_func, content)
    except RuntimeError:  # numba: "no locator available", an install without writable folders
        return


def folder() -> Path:
    """Return where loops are kept: `$NUMBA_CACHE_DIR`, else a folder of the user's cache."""
    if numba.config.CACHE_DIR:
        return Path(numba.config.CACHE_DIR)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "raysys" / "kernels"


def _of(function: Callable[..., Any], content: Callable[[], str]) -> FunctionCache:
    """Return the cache of a loop.

    A loaded loop finds its globals by the name of its module, so names are part of the stamp.
    """
    names = (numba.__version__, function.__module__, function.__qualname__)

    @functools.cache
    def stamp() -> str:
        return hashlib.sha256("\n".join([*names, content()]).encode()).hexdigest()

    class Cache(FunctionCache):  # type: ignore[misc]
        _impl_class = _Impl

        def __init__(self, py_func: Any) -> None:
            super().__init__(py_func)
            self._cache_file = _Files(self._cache_path, self._impl.filename_base, stamp)

        def save_overload(self, sig: Any, data: Any) -> None:
            with contextlib.suppress(OSError):  # the next process compiles again
                super().save_overload(sig, data)

    return Cache(function)


class _Locator(UserWideCacheLocator):  # type: ignore[misc]
    def __init__(self, py_func: Any, py_file: str) -> None:
        super().__init__(py_func, py_file)
        self._cache_path = str(folder())


class _Impl(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_Locator, *CompileResultCacheImpl._locator_classes)


class _Files(IndexDataCacheFile):  # type: ignore[misc]
    """A file for each loop, argument types and processor, whose name tells all of them.

    numba numbers them in an index, where two processes that compile at once may give one number to
    two loops. Here they write the same bytes, or different files.
    """

    def save(self, key: Any, data: Any) -> None:
        """Write what was compiled, and remove what is old of this loop's name.

        Raises:
            OSError: it cannot be written.
        """
        key = (self._source_stamp(), repr(key))
        with self._open_for_write(self._path(key)) as file:
            file.write(self._dump((key, data)))
        oldest = time.time() - _DAYS * 86400
        for path in Path(self._cache_path).glob(f"{self._base}.*.nbc*"):
            if path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)

    def load(self, key: Any) -> Any:
        """Return what was compiled for a key; None: nothing, or a damaged file."""
        key = (self._source_stamp(), repr(key))
        try:
            held, data = pickle.loads(Path(self._path(key)).read_bytes())
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            return None
        return data if held == key else None

    @property
    def _base(self) -> str:
        return str(self._index_name.removesuffix(".nbi"))

    def _path(self, key: tuple[str, str]) -> str:
        name = hashlib.sha256("\n".join(key).encode()).hexdigest()[:_CHARS]
        return os.path.join(self._cache_path, f"{self._base}.{name}.nbc")
