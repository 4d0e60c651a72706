"""The values of one attribute, as text and, where asked for, as numbers and moments.

    N items, V values: an item has several where its cell is a list, of any depth, or text with `|`
    between, and none where it is empty (NaN is empty too)

Every value has its text; the typed views beside are made when a condition first needs them.
"""

from __future__ import annotations

import datetime
import functools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysys.data.attributes import is_list, storable
from raysys.data.values import numbers_of, spelled
from raysys.errors import SearchError

NO_MOMENT = np.iinfo(np.int64).min
_WHOLE = ("item_id", "title")  # one value whatever they hold


class AttributeValues:
    """The values of a column.

    Args:
        name: of the attribute.
        column: [N] of a type that `attributes.storable` returns.

    Raises:
        SearchError: the column holds objects or bytes, which no condition looks into.
    """

    def __init__(self, name: str, column: pa.Array) -> None:
        self.name = name
        row = np.arange(len(column))
        if pa.types.is_string(column.type) and name not in _WHOLE:
            column = pc.split_pattern(column, "|")
        kind = column.type
        while is_list(column.type):
            row = row[pc.list_parent_indices(column).to_numpy(zero_copy_only=False)]
            column = pc.list_flatten(column)
        column = storable(column)
        raw = pa.types.is_binary(column.type) or pa.types.is_fixed_size_binary(column.type)
        if pa.types.is_nested(column.type) or raw:
            raise SearchError(f"attribute {name!r} holds {kind}, which conditions cannot look into")
        present = ~np.asarray(column.is_null(nan_is_null=True))
        self.row: NDArray[np.int64] = row[present].astype(np.int64)  # [V] the item of each value
        self._values = column.filter(pa.array(present))
        self.kind = column.type

    @property
    def is_id(self) -> bool:
        """Whether the values are ids, which are text even if digits alone."""
        return self.name == "item_id"

    @property
    def numeric(self) -> bool:
        """Whether the values are numbers, whatever their text."""
        kind = self.kind
        return bool(
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        )

    @property
    def temporal(self) -> bool:
        """Whether the values are dates or times."""
        return bool(pa.types.is_date(self.kind) or pa.types.is_timestamp(self.kind))

    @functools.cached_property
    def text(self) -> pa.Array:
        """The values [V] as text."""
        if pa.types.is_floating(self.kind):
            encoded = self._values.dictionary_encode()
            shortest = encoded.dictionary.to_numpy(zero_copy_only=False).astype(str).tolist()
            texts = pa.array([spelled(float(value)) for value in shortest], pa.string())
            return texts.take(encoded.indices)
        return pc.cast(self._values, pa.string())

    @functools.cached_property
    def numbers(self) -> NDArray[np.float64]:
        """The values [V] as numbers, NaN where they are none."""
        if pa.types.is_boolean(self.kind) or self.temporal:
            return np.full(len(self._values), np.nan)
        return numbers_of(self.text)

    @functools.cached_property
    def moments(self) -> NDArray[np.int64]:
        """The values [V] as UTC microseconds, `NO_MOMENT` where they are no date."""
        found: NDArray[np.int64]
        if self.temporal:
            micro = pc.cast(self._values, pa.timestamp("us"), safe=False).cast(pa.int64())
            found = micro.to_numpy()
            return found
        encoded = self.text.dictionary_encode()
        parsed = [moment_of(text) for text in encoded.dictionary.to_pylist()]
        table = np.array([NO_MOMENT if m is None else m for m in parsed], dtype=np.int64)
        found = table[encoded.indices.to_numpy()]
        return found


def moment_of(text: str) -> int | None:
    """Return UTC microseconds of an ISO 8601 date or time with its dashes, or None."""
    text = text.strip()
    try:
        time = datetime.datetime.fromisoformat(text) if text[4:5] == "-" else None
    except ValueError:
        return None
    if time is None:
        return None
    since = time.replace(tzinfo=time.tzinfo or datetime.UTC) - _EPOCH
    return since // datetime.timedelta(microseconds=1)


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
