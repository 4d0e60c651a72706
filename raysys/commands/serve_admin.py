"""Serve's helpers: what a service serves, a look for newer builds, the way back, and its keys.

Examples:
    raysys serve status url=http://127.0.0.1:8000
    raysys serve reload url=http://127.0.0.1:8000
    raysys serve rollback run=R
    raysys serve key keys=keys.yaml name=shop scopes=[read]

The key of a service is read from RAYSYS_KEY.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
import time
from pathlib import Path
from typing import Any

from raysys.config import JobConfig, location, require, require_run
from raysys.errors import ConfigError
from raysys.http.client import Client
from raysys.http.keys import hash_of, new_secret, with_key
from raysys.http.wire import Replicas
from raysys.reports.tables import aligned
from raysys.search.served import roll_back
from raysys.store.builds import Workspace
from raysys.store.storage import Storage

log = logging.getLogger(__name__)

KEY_VARIABLE = "RAYSYS_KEY"
_KINDS = ("index", "changes")
_SCOPES = ("read", "write", "admin")


@dataclasses.dataclass
class ServiceConfig(JobConfig):
    """Which service is asked.

    Attributes:
        url: of a running service.
    """

    url: str = ""

    def client(self) -> Client:
        """Return a client of the service.

        Raises:
            ConfigError: there is no url.
        """
        require(bool(self.url), "url", self.url, "that of a service, http://127.0.0.1:8000")
        return Client(self.url, key=os.environ.get(KEY_VARIABLE), timeout_s=600.0)


@dataclasses.dataclass
class RollbackConfig(ServiceConfig):
    """Which run goes back: that of a service, or `run`, whose services follow by themselves.

    Attributes:
        build_id: of a build that was current before; null: the one right before.
        kind: `index`, or `changes` of the index that stays.
    """

    build_id: str | None = None
    kind: str = "index"

    def __post_init__(self) -> None:
        """Raise ConfigError for what is neither."""
        require(self.kind in _KINDS, "kind", self.kind, " or ".join(_KINDS))
        if self.url and self.run:
            raise ConfigError("rollback takes url= or run=, not both")


@dataclasses.dataclass
class KeyConfig(JobConfig):
    """A key of the service.

    Attributes:
        keys: the file; it is made if need be.
        name: of the key: letters, digits and `._-`; a key of that name is replaced.
        scopes: what it is good for: read, write, admin; each holds those before it.
        per_second: requests of each replica; null: no limit.
        remove: take the key of this name out of the file.
    """

    keys: str = location()
    name: str = ""
    scopes: list[str] = dataclasses.field(default_factory=lambda: ["read"])
    per_second: float | None = None
    remove: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError for what no key may have."""
        require(
            bool(self.scopes) and set(self.scopes) <= set(_SCOPES),
            "scopes",
            self.scopes,
            f"a list of {', '.join(_SCOPES)}",
        )
        rate = self.per_second
        require(rate is None or 0 < rate < float("inf"), "per_second", rate, "more than 0")


def status(cfg: ServiceConfig) -> str:
    """Return what every replica serves, as a table.

    Raises:
        ServiceError: the service refuses, or does not answer.
    """
    with cfg.client() as client:
        return _table(client.replicas())


def reload(cfg: ServiceConfig) -> str:
    """Have every replica look for newer builds now; return what they serve then."""
    with cfg.client() as client:
        return _table(client.reload())


def rollback(cfg: RollbackConfig) -> str:
    """Make the index current that was so before; return what is served then.

    Raises:
        ServiceError, BuildError: there is none, or it is damaged.
    """
    if cfg.url:
        with cfg.client() as client:
            return _table(client.rollback(cfg.build_id, kind=cfg.kind))
    require_run(cfg)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    served = roll_back(workspace, build_id=cfg.build_id, kind=cfg.kind)
    return "".join(f"{kind} {build_id}\n" for kind, build_id in served.build_ids.items())


def key(cfg: KeyConfig) -> str:
    """Write a new key into the file and return its text, which nothing keeps.

    Raises:
        ConfigError: the file is damaged or cannot be written, or a setting is missing.
    """
    for setting in ("keys", "name"):
        require(bool(getattr(cfg, setting)), setting, getattr(cfg, setting), "some text")
    folder, _, name = cfg.keys.rpartition("/")
    storage = Storage(folder or "/")
    secret = new_secret()
    entry: dict[str, Any] = {"sha256": hash_of(secret), "scopes": list(cfg.scopes)}
    if cfg.per_second is not None:
        entry["per_second"] = cfg.per_second
    content = with_key(storage.read(name), cfg.keys, cfg.name, None if cfg.remove else entry)
    try:
        if storage.is_local:
            Path(folder or "/").mkdir(parents=True, exist_ok=True)
        storage.write_atomic(name, content)
    except OSError as error:
        raise ConfigError(f"keys={cfg.keys} cannot be written: {error}") from error
    if cfg.remove:
        return f"{cfg.name} is no key any more\n"
    log.info("key written name=%s scopes=%s keys=%s", cfg.name, ",".join(cfg.scopes), cfg.keys)
    return f"{secret}\n"


def _table(found: Replicas) -> str:
    rows = [["replica", "index", "changes", "up", "swaps", "since", "refused"]]
    for each in sorted(found.replicas, key=lambda replica: replica.replica):
        state = each.following
        since = "" if state is None else _moment(state.served_since)
        rows.append(
            [
                each.replica,
                each.build_ids["index"],
                each.build_ids.get("changes", "none"),
                str(datetime.timedelta(seconds=int(each.uptime_s))),
                "" if state is None else str(state.swaps),
                since,
                (state.refused if state is not None else None) or "",
            ]
        )
    return "\n".join(aligned(rows, left=(0, 1, 2, 6))) + "\n"


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
