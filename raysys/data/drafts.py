"""Drafts of runs that died: found by a lock that ends with its process, and removed."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysys.builds import Draft, Workspace

log = logging.getLogger(__name__)

_YOUNG_S = 1.0  # a draft may not have its lock yet


@contextmanager
def owned(ws: Workspace, draft: Draft) -> Iterator[None]:
    """Hold the draft's lock during the block; first remove drafts beside it that nobody holds.

    On object stores there is nothing to do: a draft there lies at the build's own place, hidden
    by its missing manifest, and is emptied by the next run.
    """
    if not ws.storage.is_local:
        yield
        return
    handle = os.open(draft.staging, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        for folder in Path(ws.storage.root, draft.kind).glob(".*.*"):
            if folder != draft.staging and folder.is_dir() and _is_abandoned(folder):
                log.warning("draft of a dead run removed path=%s", folder)
                shutil.rmtree(folder, ignore_errors=True)
        yield
    finally:
        os.close(handle)


def _is_abandoned(folder: Path) -> bool:
    try:
        if time.time() - folder.stat().st_mtime < _YOUNG_S:
            return False
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # it was just committed or removed
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True
