"""Filters by item attributes: which items a list may hold.

    {"genres": "Comedy"}                      one value
    {"genres": ["Comedy", "Drama"]}           any of them
    {"year": {"min": 1990, "max": 1999}}      a range, either end may be missing

Values are compared as text. A cell may hold several: a list, or text with `|` between. Under
`allow` every condition must hold, under `deny` none may. An item without a value meets none.
"""

from __future__ import annotations

import difflib
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raysys.builds import Build
from raysys.errors import SearchError
from raysys.retrieval.changes import Changes, joined_items

Conditions = Mapping[str, Any]
Mask = NDArray[np.bool_]

_RESERVED = ("item_num", "embedding")
_KEPT_MASKS = 32


class Attributes:
    """The columns of the served items that can be filtered by.

    Args:
        items: row number = item_num; every column but item_num and embeddings counts.
    """

    def __init__(self, items: pa.Table) -> None:
        names = [name for name in items.column_names if name not in _RESERVED]
        self._items = items.select(names)
        self._values: dict[str, tuple[NDArray[np.int64], pa.Array]] = {}
        self._masks: OrderedDict[str, Mask] = OrderedDict()

    @classmethod
    def load(cls, embeddings: Build, changes: Changes | None = None) -> Attributes:
        """Read the items of an `embeddings` build, and those that changed since."""
        names = pq.read_schema(embeddings.path("items.parquet")).names
        wanted = [name for name in names if name not in _RESERVED]
        items = pq.read_table(embeddings.path("items.parquet"), columns=wanted)
        return cls(items if changes is None else joined_items(items, changes))

    @property
    def names(self) -> list[str]:
        """The attributes by name."""
        return list(self._items.column_names)

    def mask(self, allow: Conditions | None, deny: Conditions | None) -> Mask | None:
        """Return which items [N] a list may hold; None: all.

        Raises:
            SearchError: an attribute that the items do not have, or a condition of no known form.
        """
        if not allow and not deny:
            return None
        key = json.dumps([allow, deny], sort_keys=True, default=str)
        if key not in self._masks:
            mask = np.ones(len(self._items), dtype=bool)
            for name, condition in (allow or {}).items():
                mask &= self._meets(name, condition)
            for name, condition in (deny or {}).items():
                mask &= ~self._meets(name, condition)
            self._masks[key] = mask
            while len(self._masks) > _KEPT_MASKS:
                self._masks.popitem(last=False)
        return self._masks[key]

    def _meets(self, name: str, condition: Any) -> Mask:
        """Return the items [N] that meet one condition."""
        if name not in self.names:
            near = difflib.get_close_matches(name, self.names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SearchError(
                f"items have no attribute {name!r}: they have {', '.join(self.names)}{hint}"
            )
        if isinstance(condition, Mapping):
            return self._in_range(name, condition)
        wanted = condition if isinstance(condition, (list, tuple, set)) else [condition]
        row, values = self._values_of(name)
        hit = pc.is_in(values, value_set=pa.array([_text(v) for v in wanted], pa.string()))
        mask = np.zeros(len(self._items), dtype=bool)
        mask[row[hit.to_numpy(zero_copy_only=False)]] = True
        return mask

    def _in_range(self, name: str, condition: Mapping[str, Any]) -> Mask:
        bounds = {key: condition.get(key) for key in ("min", "max")}
        unknown = set(condition) - set(bounds)
        numbers = [b for b in bounds.values() if b is not None]
        if unknown or not numbers or not all(isinstance(b, (int, float)) for b in numbers):
            raise SearchError(
                f"{name}={dict(condition)} is no range: expected min and max, numbers"
            )
        column = self._items[name].combine_chunks()
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise SearchError(f"attribute {name!r} holds {column.type}, a range needs numbers")
        values = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
        low = -np.inf if bounds["min"] is None else bounds["min"]
        high = np.inf if bounds["max"] is None else bounds["max"]
        return np.asarray((values >= low) & (values <= high))

    def _values_of(self, name: str) -> tuple[NDArray[np.int64], pa.Array]:
        """Return every value of a column as text, and the item each belongs to."""
        if name not in self._values:
            column = self._items[name].combine_chunks()
            if name == "item_id":  # an id is one value whatever it holds
                self._values[name] = np.arange(len(column)), _as_text(column)
                return self._values[name]
            if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
                column = pc.split_pattern(_as_text(column), "|")
            row = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
            self._values[name] = row.astype(np.int64), _as_text(pc.list_flatten(column))
        return self._values[name]


def _as_text(column: pa.Array) -> pa.Array:
    if pa.types.is_floating(column.type):
        return pa.array([None if v is None else _text(v) for v in column.to_pylist()], pa.string())
    return pc.cast(column, pa.string())


def _text(value: Any) -> str:
    """Return a value as columns of any type spell it: 1990.0 is 1990, true is true."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
