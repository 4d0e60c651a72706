"""Everything that raysys raises on purpose.

    RaysysError
    ├── ConfigError               an unknown key, a value out of range, settings that conflict
    ├── DataError                 a source that cannot be read, rows that break a rule
    │   ├── UnknownItemError      an item id that the catalogue does not hold
    │   └── UnknownUserError      a user id that no profile has (search.query)
    ├── ServiceError              what the HTTP client was answered (http.client)
    ├── BuildError                a build that is missing or does not fit the others
    │   ├── SchemaVersionError    written by another version of the format
    │   └── CorruptBuildError     a file whose size or hash is not the manifest's
    └── SearchError               a query that the index cannot answer

A message says what was wrong, the value, what is accepted, and the key or path. Jobs turn every
RaysysError into one line on stderr and exit status 2, also when a Ray worker raised it.
"""

from __future__ import annotations

import re

_USER = re.compile(r"//[^/@\s]*@")  # of a URI


class RaysysError(Exception):
    """Base of all errors that a user can act upon."""


class ConfigError(RaysysError):
    """A configuration that cannot be used."""


class DataError(RaysysError):
    """Input data that cannot be used."""


class UnknownItemError(DataError):
    """An item id that the catalogue does not hold."""


class BuildError(RaysysError):
    """A build that is missing or does not belong to the others."""


class SchemaVersionError(BuildError):
    """A build written by another version of its format."""


class CorruptBuildError(BuildError):
    """A build whose files are not those that its manifest lists."""


class SearchError(RaysysError):
    """A query that the index cannot answer."""


def told(error: BaseException) -> str:
    """Return what an error says in one line, without the keys that a URI may hold."""
    return without_keys(" ".join(f"{error}".split()) or type(error).__name__)


def without_keys(text: str) -> str:
    """Return a text without the user and password that its URIs may name."""
    return _USER.sub("//", text)


def find_cause(error: BaseException) -> RaysysError | None:
    """Return the RaysysError inside `error`, or None.

    Ray wraps what a worker raised: task errors carry `cause`, training errors carry
    `worker_failures` (a dict) or `controller_failure`. Explicit chaining (`__cause__`,
    `__context__`) is followed too.
    """
    todo: list[object] = [error]
    seen: set[int] = set()
    while todo:
        current = todo.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, RaysysError):
            return current
        failures = getattr(current, "worker_failures", None)
        todo += list(failures.values()) if isinstance(failures, dict) else []
        for name in ("cause", "controller_failure", "_failure", "__cause__", "__context__"):
            todo.append(getattr(current, name, None))
    return None
