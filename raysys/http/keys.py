"""Keys: who may ask what, and how often.

The file lists keys by their hash alone, so that whoever reads it holds none. It is read anew while
the service runs: a key that is added or taken away counts within seconds.

    keys:
      - name: shop
        sha256: 1f0e...
        scopes: [read]
        per_second: 100
"""

from __future__ import annotations

import enum
import hashlib
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raysys.errors import ConfigError, RaysysError, told
from raysys.store.storage import Storage

log = logging.getLogger(__name__)

_LOOK_S = 2.0  # seconds between looks at the file
_PREFIX = "rs_"  # of a key, so that one in a log or a repository is recognised
_NAME = r"^[A-Za-z0-9._-]{1,64}$"


class Scope(enum.StrEnum):
    """What a key is good for; `admin` holds `write`, and that holds `read`."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


_HELD = {
    Scope.READ: {Scope.READ},
    Scope.WRITE: {Scope.READ, Scope.WRITE},
    Scope.ADMIN: {Scope.READ, Scope.WRITE, Scope.ADMIN},
}


class Key(BaseModel):
    """One entry of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=_NAME)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[list[Scope], Field(min_length=1)]
    per_second: float | None = Field(None, gt=0, description="requests, of each replica")

    def may(self, scope: Scope) -> bool:
        """Tell whether the key is good for something."""
        return any(scope in _HELD[own] for own in self.scopes)


class KeyFile(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid")

    keys: list[Key]

    @classmethod
    def parse(cls, content: bytes, where: str) -> KeyFile:
        """Read the file's content.

        Raises:
            ConfigError: it is no such file; the message names the entry.
        """
        try:
            found = cls.model_validate(yaml.safe_load(content))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise ConfigError(f"keys={where}: {place}: {first['msg']}") from error
        except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
            raise ConfigError(f"keys={where} is no YAML: {' '.join(str(error).split())}") from error
        names = [key.name for key in found.keys]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"keys={where}: name {twice[0]!r} is there more than once")
        return found


class KeyRing:
    """The keys of a file, read anew while they are used.

    Args:
        path: of the file, or a URI.

    Raises:
        ConfigError: there is no such file, or it is damaged. Later on, what was read last stays.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        folder, _, self._name = path.rpartition("/")
        self._storage = Storage(folder or ("/" if path.startswith("/") else "."))
        self._content = self._read()
        self._refused: bytes | None = None  # content that was no key file
        self._failing = False
        self._keys = self._parsed(self._content)
        self._budgets: dict[str, Budget] = {}

    def start(self) -> None:
        """Look at the file from time to time in a thread of its own, until the process ends."""
        threading.Thread(target=self._run, name="raysys-keys", daemon=True).start()

    def find(self, secret: str) -> Key | None:
        """Return the key with this text, or None."""
        return self._keys.get(hash_of(secret))

    def spend(self, key: Key) -> float:
        """Count a request of a key; return 0, or the seconds after which it has another."""
        if key.per_second is None:
            return 0.0
        budget = self._budgets.get(key.name)
        if budget is None or budget.per_second != key.per_second:
            budget = self._budgets[key.name] = Budget(key.per_second)
        return budget.spend()

    def look(self) -> bool:
        """Read the file again; return whether its keys are others now."""
        content: bytes | None = None
        try:
            content = self._read()
            if content in (self._content, self._refused):
                self._failing = content != self._content
                return False
            self._keys = self._parsed(content)
        except RaysysError as error:
            if not self._failing:
                log.warning("service keeps the keys that it has: %s", told(error))
            self._failing, self._refused = True, content
            return False
        self._content, self._failing = content, False
        log.info("service read its keys anew n=%d", len(self._keys))
        return True

    # -- internals -------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            time.sleep(_LOOK_S)
            try:
                self.look()
            except Exception:  # a fault of ours; keys that go must still count later
                log.exception("reading keys failed")

    def _read(self) -> bytes:
        content = self._storage.read(self._name)
        if content is None:
            raise ConfigError(f"keys={self._path} is no file: `raysys serve key` writes one")
        return content

    def _parsed(self, content: bytes) -> Mapping[str, Key]:
        return {key.sha256: key for key in KeyFile.parse(content, self._path).keys}


class Budget:
    """Requests that a key has left: up to a second's worth, refilled steadily.

    Args:
        per_second: requests.
        now: the clock, in seconds.
    """

    def __init__(self, per_second: float, now: Callable[[], float] = time.monotonic) -> None:
        self.per_second, self._now = per_second, now
        self._most = max(per_second, 1.0)
        self._left, self._at = self._most, now()

    def spend(self) -> float:
        """Take one request; return 0, or the seconds until there is one."""
        now = self._now()
        self._left = min(self._most, self._left + (now - self._at) * self.per_second)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self.per_second
        self._left -= 1
        return 0.0


def new_secret() -> str:
    """Return the text of a new key: 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(32)


def hash_of(secret: str) -> str:
    """Return what the file holds of a key; so many random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def with_key(
    content: bytes | None, where: str, name: str, entry: Mapping[str, Any] | None
) -> bytes:
    """Return a key file's content with another entry of this name, or without one.

    Args:
        content: of the file; None: there is none yet.
        where: the file, for messages.
        name: of the key.
        entry: what the file says of it beside its name; None: it goes.

    Raises:
        ConfigError: the file is damaged, the entry is none, or there is no key to go.
    """
    found = [] if content is None else KeyFile.parse(content, where).keys
    if entry is None and name not in [key.name for key in found]:
        raise ConfigError(f"keys={where}: there is no key {name!r}")
    kept = [key.model_dump(mode="json", exclude_none=True) for key in found if key.name != name]
    if entry is not None:
        kept.append({"name": name, **entry})
    text = yaml.safe_dump({"keys": kept}, sort_keys=False)
    KeyFile.parse(text.encode(), where)
    return text.encode()


def given_key(headers: Mapping[bytes, bytes]) -> str | None:
    """Return the key of a request: `Authorization: Bearer KEY`."""
    found = re.fullmatch(rb"[Bb]earer +([!-~]+)", headers.get(b"authorization", b"").strip())
    return found.group(1).decode() if found else None
