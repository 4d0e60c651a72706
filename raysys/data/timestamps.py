"""Timestamps of any common form -> int64 UTC seconds.

Numbers are read by their size, row by row: below 1e11 seconds, below 1e14 milliseconds, below 1e17
microseconds, else nanoseconds (1e11 s is the year 5138, 1e11 ms is 1973). Text is a number or
ISO-8601, UTC where it names no zone.
"""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysys.errors import DataError

LATEST = 4_102_444_800  # 2100-01-01
_UNITS = (("s", 1e11, 1), ("ms", 1e14, 10**3), ("us", 1e17, 10**6), ("ns", np.inf, 10**9))
_NUMBER = r"^\s*[+-]?\d+(\.\d*)?\s*$"


def to_seconds(column: pa.Array) -> tuple[pa.Array, NDArray[np.bool_], dict[str, int]]:
    """Return UTC seconds, the rows that are not a time from 1970 to 2100, and rows per unit.

    Args:
        column: [M] integers, floats, text, dates or Arrow timestamps.

    Returns:
        int64 array [M], null where the time is missing or bad; mask [M] of bad rows; {unit: rows}
        with units s, ms, us, ns and iso.

    Raises:
        DataError: the column is of another type.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), column.type.value_type
    if pa.types.is_null(kind):
        return pa.nulls(len(column), pa.int64()), np.zeros(len(column), dtype=bool), {}
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        seconds, bad, units = _from_text(column.cast(pa.string()))
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        seconds, bad, units = _from_numbers(column)
    elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        micro = pc.cast(column, pa.timestamp("us"), safe=False)
        values, present = _split(micro.cast(pa.int64()))
        seconds = values // 10**6
        bad, units = np.zeros(len(values), dtype=bool), {"iso": int(present.sum())}
        seconds = np.where(present, seconds, -1)
        return _finish(seconds, bad, present, units)
    else:
        raise DataError(f"a timestamp column of type {kind} is not understood")
    return _finish(seconds, bad, ~np.asarray(column.is_null()), units)


def _finish(
    seconds: NDArray[np.int64],
    bad: NDArray[np.bool_],
    present: NDArray[np.bool_],
    units: dict[str, int],
) -> tuple[pa.Array, NDArray[np.bool_], dict[str, int]]:
    bad = present & (bad | (seconds < 0) | (seconds > LATEST))
    used = {unit: count for unit, count in units.items() if count}
    return pa.array(seconds, mask=~present | bad), bad, used


def _split(column: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    present = ~np.asarray(column.is_null())
    return pc.fill_null(column, -1).to_numpy(zero_copy_only=False), present


def _from_numbers(
    column: pa.Array,
) -> tuple[NDArray[np.int64], NDArray[np.bool_], dict[str, int]]:
    """Read numbers by their size; NaN counts as bad."""
    present = ~np.asarray(column.is_null())
    if pa.types.is_integer(column.type):
        values = pc.fill_null(pc.cast(column, pa.int64(), safe=False), 0).to_numpy()
        bad = np.zeros(len(values), dtype=bool)
    else:
        floats = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        bad = present & ~(np.abs(floats) < 9e18)
        values = np.where(present & ~bad, floats, 0)
    seconds = np.zeros(len(values), dtype=np.int64)
    units = {}
    at_least = 0.0
    size = np.abs(values)
    lowest, highest = (size.min(), size.max()) if len(size) and present.all() else (0, 0)
    for unit, below, divisor in _UNITS:
        if lowest >= at_least and 0 < highest < below and not bad.any():  # all of one unit
            seconds = np.floor_divide(values, divisor).astype(np.int64)
            return seconds, bad, {unit: len(values)}
        rows = (size >= at_least) & (size < below) & present & ~bad
        units[unit] = int(rows.sum())
        if units[unit]:
            seconds[rows] = np.floor_divide(values[rows], divisor).astype(np.int64)
        at_least = below
    return seconds, bad, units


def _from_text(column: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.bool_], dict[str, int]]:
    numeric = np.asarray(pc.fill_null(pc.match_substring_regex(column, _NUMBER), False))
    present = ~np.asarray(column.is_null())
    numbers = pc.if_else(pa.array(numeric), pc.utf8_trim_whitespace(column), None)
    seconds, bad, units = _from_numbers(_parse_numbers(numbers))
    rows = np.flatnonzero(present & ~numeric)
    if len(rows):
        parsed, wrong = _from_iso(column.take(pa.array(rows)))
        seconds[rows], bad[rows] = parsed, wrong
        units["iso"] = int(len(rows) - wrong.sum())
    return seconds, bad, units


def _parse_numbers(text: pa.Array) -> pa.Array:
    """Parse as integers where possible: floats lose seconds beyond 2^53 nanoseconds."""
    try:
        return pc.cast(text, pa.int64())
    except pa.ArrowInvalid:
        return pc.cast(text, pa.float64())


def _from_iso(text: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return pc.cast(text, kind).cast(pa.int64()).to_numpy() // 10**6, np.zeros(
                len(text), dtype=bool
            )
        except pa.ArrowInvalid:
            continue
    encoded = text.dictionary_encode()
    parsed = [_parse_iso(value) for value in encoded.dictionary.to_pylist()]
    codes = encoded.indices.to_numpy()
    seconds = np.array([-1 if value is None else value for value in parsed], dtype=np.int64)
    return seconds[codes], np.array([value is None for value in parsed], dtype=bool)[codes]


def _parse_iso(text: str) -> int | None:
    try:
        time = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.UTC)
    return int(time.timestamp() // 1)
