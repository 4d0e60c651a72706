"""Which keys a sweep may try: those that make another model or service, judged by the same targets.

A key that moves the targets, the users or the catalogue of the validation period makes every trial
an answer to another question; a key of place or workers makes no difference to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from raysys import fields
from raysys.commands.index import IndexConfig
from raysys.commands.train import TrainConfig
from raysys.commands.trial import INDEX, PREPARE, TRAIN, stage_of
from raysys.errors import ConfigError
from raysys.prepare.config import PrepareConfig

SCHEMAS: dict[str, type] = {TRAIN: TrainConfig, INDEX: IndexConfig, PREPARE: PrepareConfig}
_PREPARE = ("liked_levels", "negative_events")
_TARGETS = "it moves the targets of the validation period"
_USERS = "it changes the users and the catalogue of the validation period"
_ROWS = "it changes which rows of the log count, and with them the targets of the validation period"
_SEEDS = "finalists are repeated over seeds: seeds="
_REASONS = {
    **{f"{PREPARE}{key}": _TARGETS for key in ("split", "folds", "val_cut", "test_cut", "seed")},
    **{f"{PREPARE}{key}": _TARGETS for key in ("val_share", "test_share")},
    **{f"{PREPARE}{key}": _USERS for key in ("min_user_rows", "max_user_rows")},
    **{f"{PREPARE}{key}": _USERS for key in ("min_item_rows", "core_rounds")},
    **{f"{PREPARE}{key}": _ROWS for key in ("dedupe", "events", "ignore_events", "max_bad_share")},
    **{f"{PREPARE}{key}": _ROWS for key in ("min_rating", "max_rating", "columns", "format")},
    "seed": _SEEDS,
    f"{INDEX}seed": _SEEDS,
    "model": "a trial trains what its objectives need",
    "similarity": "it is of vectors of your own, which no log judges",
    "refit": "a trial is judged on the validation period, which a refit would take in",
    "select": "epochs are chosen by the first objective that they can be chosen by",
}
_KEPT = ("compressor.keep",)  # no part of a training's identity, yet another service


def check_swept(keys: Iterable[str]) -> None:
    """Refuse keys that no sweep can try, by name and with the reason.

    Args:
        keys: dotted; bare those of `train`, `index.KEY`, `prepare.KEY`.

    Raises:
        ConfigError: a key is unknown or refused.
    """
    for key in keys:
        prefix, bare = stage_of(key)
        schema = SCHEMAS[prefix]
        fields.check_keys(schema, _tree(bare), f"space.{prefix}")
        reason = _reason(schema, bare, key)
        if reason is not None:
            raise ConfigError(f"space.{key} cannot be swept: {reason}")


def _reason(schema: type, bare: str, key: str) -> str | None:
    """Return why a known key is refused; None: it is not."""
    section = f"{PREPARE}{bare.partition('.')[0]}" if schema is PrepareConfig else key
    if section in _REASONS:
        return _REASONS[section]
    if key not in _KEPT and _is_local(schema, bare):
        return "it says where or how fast, and makes no other model"
    if schema is PrepareConfig and bare not in _PREPARE:
        return f"of prepare, {' and '.join(_PREPARE)} alone leave validation as it is"
    return None


def _is_local(schema: Any, bare: str) -> bool:
    """Tell whether a field, or a section that holds it, is no part of a build's identity."""
    for name in bare.split("."):
        field = {field.name: field for field in dataclasses.fields(schema)}[name]
        if not field.metadata.get("identity", True):
            return True
        schema = fields.section(schema, name)
    return False


def _tree(bare: str) -> dict[str, Any]:
    name, dot, rest = bare.partition(".")
    return {name: _tree(rest) if dot else None}
