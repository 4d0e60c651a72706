"""Pins: builds that are kept, with all they were made from, until someone lets them go.

<run>/pins.json    {name: place of a build}
"""

from __future__ import annotations

import json

from raysys.errors import BuildError
from raysys.store.leases import leased
from raysys.store.storage import Storage

PINS = "pins.json"


def pins(storage: Storage) -> dict[str, str]:
    """Return {name: place}, such as `index/0123456789abcdef`.

    Raises:
        CorruptBuildError: the file is damaged.
    """
    record = storage.read_json(PINS) or {}
    return {str(name): str(place) for name, place in record.items()}


def pin(storage: Storage, name: str, place: str) -> None:
    """Keep a build under a name, which may have been that of another one.

    Raises:
        BuildError: the run cannot be written.
    """
    with leased(storage, "pins"):
        _write(storage, pins(storage) | {name: place})


def unpin(storage: Storage, name: str) -> str:
    """Let go what is kept under a name; return its place.

    Raises:
        BuildError: nothing is.
    """
    with leased(storage, "pins"):
        kept = pins(storage)
        if name not in kept:
            names = ", ".join(sorted(kept)) or "none"
            raise BuildError(f"unpin={name!r} is no pin of {storage.run}: its pins are {names}")
        place = kept.pop(name)
        _write(storage, kept)
    return place


def _write(storage: Storage, kept: dict[str, str]) -> None:
    try:
        if kept:
            storage.write_atomic(PINS, json.dumps(kept, indent=1, sort_keys=True) + "\n")
        else:
            storage.remove(PINS)
    except OSError as error:
        raise BuildError(f"run={storage.run} cannot be written: {error}") from error
