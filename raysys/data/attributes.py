"""Attributes of items: the types that a build's `items.parquet` holds, and tables that join.

Text, numbers, booleans, dates, lists and objects stay what they are. What Parquet or a filter
cannot hold becomes text (`values.spelled`). Tables whose types of a column do not go together
join as text, or as lists of text where one of them holds lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysys.data.values import spelled

_TEXT = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null),
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
    pa.types.is_fixed_size_binary,
)
_PLAIN = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_null),
    *(pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
    *(pa.types.is_date, pa.types.is_timestamp, pa.types.is_fixed_size_binary),
)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def storable(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a column in a type that `items.parquet` may hold."""
    array = _one(column)
    if pa.types.is_dictionary(array.type):
        return storable(array.dictionary_decode())
    if pa.types.is_run_end_encoded(array.type):
        return storable(pc.run_end_decode(array))
    if isinstance(array, pa.ExtensionArray):
        return _spelled(array) if "uuid" in str(array.type) else storable(array.storage)
    if any(test(array.type) for test in _TEXT):
        return _text_or_bytes(array)
    if _plain(array.type):
        return array.cast(pa.float32()) if pa.types.is_float16(array.type) else array
    if any(test(array.type) for test in (*_LISTS, pa.types.is_list_view, pa.types.is_struct)):
        again = pa.array(array.to_pylist())  # the same values in common types
        return again if _plain(again.type) else _spelled(array)
    return _spelled(array)


def titles_of(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return titles as text; several in a list stand behind one another."""
    array = storable(column)
    if pa.types.is_string(array.type):
        return array
    return pa.array([_title(value) for value in array.to_pylist()], pa.string())


def _title(value: Any) -> str | None:
    if not isinstance(value, list):
        return spelled(value)
    return ", ".join(text for text in map(spelled, value) if text is not None)


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of all tables; a column that one of them lacks is null there."""
    names = dict.fromkeys(name for table in tables for name in table.column_names)
    columns = {}
    for name in names:
        parts = [
            _one(table[name]) if name in table.column_names else pa.nulls(len(table))
            for table in tables
        ]
        columns[name] = _together(parts)
    return pa.table(columns)


def _together(parts: Sequence[pa.Array]) -> pa.ChunkedArray:
    try:
        tables = [pa.table({"column": part}) for part in parts]
        return pa.concat_tables(tables, promote_options="permissive")["column"]
    except pa.ArrowException:
        lists = any(is_list(part.type) for part in parts)
        kind = pa.list_(pa.string()) if lists else pa.string()
        return pa.chunked_array([_listed(p) if lists else _spelled(p) for p in parts], kind)


def is_list(kind: pa.DataType) -> bool:
    """Tell whether values of a type are lists."""
    return any(test(kind) for test in _LISTS)


def _listed(array: pa.Array) -> pa.Array:
    """Return flat lists of text; text with `|` between holds several values, as in a filter."""
    if not is_list(array.type):
        return pc.split_pattern(_spelled(array), "|")
    values = [None if value is None else _flat(value) for value in array.to_pylist()]
    return pa.array(values, pa.list_(pa.string()))


def _flat(value: Any) -> list[str | None]:
    if isinstance(value, list):
        return [text for element in value for text in _flat(element)]
    return [spelled(value)]


def _spelled(array: pa.Array) -> pa.Array:
    return pa.array([spelled(value) for value in array.to_pylist()], pa.string())


def _text_or_bytes(array: pa.Array) -> pa.Array:
    if pa.types.is_binary_view(array.type):
        array = array.cast(pa.binary())
    try:
        return array.cast(pa.string())
    except pa.ArrowInvalid:  # not UTF-8, a picture perhaps
        return array


def _plain(kind: pa.DataType) -> bool:
    """Tell whether Parquet and filters take a type as it is."""
    if pa.types.is_struct(kind) or is_list(kind):
        children = [kind.field(k).type for k in range(kind.num_fields)]
        return bool(children) and all(_plain(child) for child in children)
    return any(test(kind) for test in _PLAIN)


def _one(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if hasattr(combined, "chunks") else combined
