"""The access and the audit log: JSON, a line for each request, in files of a folder.

access-HOST-PID.jsonl   every request of one replica; the oldest files go
audit-HOST-PID.jsonl    what was asked of /v1/admin/ and by which key; nothing goes
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import socket
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysys.errors import ConfigError

_FILE_BYTES = 64 << 20
_FILES = 8  # of one replica that are kept


class Logs:
    """The two logs of one process.

    Args:
        folder: is made if need be.

    Raises:
        ConfigError: it cannot be written.
    """

    def __init__(self, folder: str) -> None:
        suffix = f"{socket.gethostname()}-{os.getpid()}.jsonl"
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            _prune(Path(folder))
            self._access = logging.handlers.RotatingFileHandler(
                Path(folder) / f"access-{suffix}", maxBytes=_FILE_BYTES, backupCount=_FILES - 1
            )
            self._audit = logging.FileHandler(Path(folder) / f"audit-{suffix}", delay=True)
        except OSError as error:
            raise ConfigError(f"logs={folder} cannot be written: {error}") from error
        for handler in (self._access, self._audit):
            weakref.finalize(self, handler.close)

    def access(self, record: Mapping[str, Any]) -> None:
        """Write a line of the access log."""
        self._access.handle(_line(record))

    def audit(self, record: Mapping[str, Any]) -> None:
        """Write a line of the audit log."""
        self._audit.handle(_line(record))


def _prune(folder: Path) -> None:
    """Delete the oldest access logs of this host's processes that have ended."""
    ended = []
    for path in folder.glob(f"access-{socket.gethostname()}-*.jsonl*"):
        pid = path.name.partition(".jsonl")[0].rpartition("-")[2]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            ended.append(path)
    ended.sort(key=lambda path: path.stat().st_mtime)
    for path in ended[:-_FILES]:
        path.unlink(missing_ok=True)  # another replica may start too


def _line(record: Mapping[str, Any]) -> logging.LogRecord:
    now = time.time()
    text = json.dumps({"time": round(now, 3), **record}, ensure_ascii=False)
    return logging.LogRecord("raysys.access", logging.INFO, "", 0, text, None, None)
