"""Values of any type -> ids and attributes as text, ratings as float32; faults are told apart.

A whole number is the same id whatever holds it: 50, 50.0 and the decimal 50.00 are `50`. A float
holds whole numbers exactly below 2^53 (float32: 2^24); ids beyond may be several, so they are
faults like fractions. Text is never changed.
"""

from __future__ import annotations

import datetime
import json
import logging
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysys.errors import DataError

log = logging.getLogger(__name__)

Rule = tuple[str, NDArray[np.bool_]]  # why rows are bad, and which [M]

_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_EXACT = 2**53  # floats below hold whole numbers exactly
_MANTISSA = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


def to_ids(column: pa.Array, role: str) -> pa.Array:
    """Return ids as strings, null where missing, empty or faulty; faults are warned about.

    Raises:
        DataError: the column cannot be read as ids.
    """
    ids, faults = parse_ids(column, role)
    for reason, mask in faults:
        log.warning("ids left out rows=%d of %d reason=%s", mask.sum(), len(mask), reason)
    return ids


def given_ids(column: pa.Array | pa.ChunkedArray, where: str, first_row: int = 0) -> list[str]:
    """Return item ids of which none may be missing.

    Raises:
        DataError: a row has none, or a faulty one; the message begins with `where`.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    ids, faults = parse_ids(array, "item")
    if ids.null_count:
        row = int(np.flatnonzero(np.asarray(ids.is_null()))[0])
        reason = next((reason for reason, mask in faults if mask[row]), "missing item_id")
        raise DataError(f"{where} row {first_row + row}: {reason}")
    texts: list[str] = ids.to_pylist()
    return texts


def encoded_ids(column: pa.Array, role: str) -> tuple[pa.Array, list[Rule]]:
    """Return ids dictionary-encoded, null where missing or faulty, and the faults.

    Text stays as encoded before.
    """
    if not pa.types.is_dictionary(column.type):
        ids, faults = parse_ids(column, role)
        return ids.dictionary_encode(), faults
    ids, faults = parse_ids(column.dictionary, role)
    codes = column.indices.cast(pa.int32())
    if faults:
        place = pc.fill_null(codes, -1).to_numpy()
        faults = [(reason, np.append(mask, False)[place]) for reason, mask in faults]
    if ids.null_count:
        missing = np.concatenate((np.flatnonzero(np.asarray(ids.is_null())), [-1]))
        codes = pc.if_else(pc.is_in(codes, value_set=pa.array(missing, pa.int32())), None, codes)
        ids = pc.fill_null(ids, "")
    return pa.DictionaryArray.from_arrays(codes, ids), faults


def parse_ids(column: pa.Array, role: str) -> tuple[pa.Array, list[Rule]]:
    """Return ids as strings, null where missing, empty or faulty, and the faults there are.

    Raises:
        DataError: the column is of a type that holds no ids (lists, structs).
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return parse_ids(column.dictionary_decode(), role)
    if isinstance(column, pa.ExtensionArray):
        if kind.extension_name == "arrow.uuid":
            raw = column.storage.to_pylist()
            texts = [None if value is None else str(uuid.UUID(bytes=value)) for value in raw]
            return pa.array(texts, pa.string()), []
        return parse_ids(column.storage, role)
    if pa.types.is_floating(kind):
        return _float_ids(column, role)
    if pa.types.is_decimal(kind):
        return _decimal_ids(column, role)
    faults: list[Rule] = []
    try:
        text = pc.cast(column, pa.string())
    except pa.ArrowInvalid:
        text, faults = _utf8(column, role)
    except pa.ArrowException as error:
        raise DataError(
            f"{role} ids of type {kind} cannot be read: expected text or numbers"
        ) from error
    if pa.types.is_integer(kind):
        return text, faults
    empty = pc.equal(text, "")
    return (pc.if_else(empty, None, text) if pc.any(empty).as_py() else text), faults


def to_ratings(
    column: pa.Array, accepted: tuple[float | None, float | None]
) -> tuple[pa.Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """Return float32 ratings (null: unrated), rows that are no number, rows out of range.

    Booleans are 1 and 0. Text is a number with a dot; `4,5` is none.

    Raises:
        DataError: the column is of a type that holds no ratings (dates, lists).
    """
    missing = np.asarray(column.is_null(nan_is_null=False))
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if any(test(kind) for test in _TEXT):
        text = pc.cast(column, pa.string())
        number = pc.fill_null(pc.match_substring_regex(text, _NUMBER), False)
        column = pc.if_else(number, pc.utf8_trim_whitespace(text), None)
    elif pa.types.is_temporal(kind):
        raise DataError(f"ratings of type {kind} cannot be read: expected numbers")
    try:
        values = pc.cast(column, pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise DataError(f"ratings of type {kind} cannot be read: expected numbers") from error
    wrong = ~missing & ~np.isfinite(values)
    low, high = accepted
    outside = ~missing & ~wrong & (low is not None) & (values < (low or 0.0))
    outside |= ~missing & ~wrong & (high is not None) & (values > (high or 0.0))
    return pa.array(values, pa.float32(), mask=missing | wrong), wrong, outside


def spelled(value: Any) -> str | None:
    """Return a value as text: numbers and booleans as in JSON, whole ones without a fraction.

    Dates are ISO 8601, bytes UTF-8 or else hexadecimal, lists and objects JSON.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))
    if isinstance(value, (bool, int, float, list, dict)):
        return json.dumps(value, ensure_ascii=False, default=spelled)
    return str(value)


def numbers_of(text: pa.Array) -> NDArray[np.float64]:
    """Return the numbers that texts [V] are, NaN where they are none."""
    number = pc.fill_null(pc.match_substring_regex(text, _NUMBER), False)
    values = pc.cast(pc.if_else(number, pc.utf8_trim_whitespace(text), None), pa.float64())
    found: NDArray[np.float64] = values.to_numpy(zero_copy_only=False)
    return np.where(np.isfinite(found), found, np.nan)


def _float_ids(column: pa.Array, role: str) -> tuple[pa.Array, list[Rule]]:
    """Read whole floats that no other whole number rounds to; NaN is missing."""
    floats = column.to_numpy(zero_copy_only=False)
    missing = np.isnan(floats)
    bits = _MANTISSA[column.type]
    with np.errstate(invalid="ignore"):
        beyond = np.isfinite(floats) & (np.abs(floats.astype(np.float64)) >= 2.0**bits)
        fraction = ~missing & ~beyond & (floats != np.floor(floats)) | np.isinf(floats)
    bad = missing | beyond | fraction
    whole = np.where(bad, 0, floats).astype(np.int64)
    return pa.array(whole, mask=bad).cast(pa.string()), _present(
        (f"{role} id is not a whole number", fraction),
        (f"{role} id beyond 2^{bits} as a float", beyond),
    )


def _decimal_ids(column: pa.Array, role: str) -> tuple[pa.Array, list[Rule]]:
    wide = pa.decimal256(76, max(column.type.scale, 0))
    whole = pc.cast(column, pa.decimal256(76, 0), safe=False)  # cuts fractions off
    exact = pc.fill_null(pc.equal(pc.cast(whole, wide), pc.cast(column, wide)), True)
    faults = _present((f"{role} id is not a whole number", ~np.asarray(exact)))
    return pc.cast(pc.if_else(exact, whole, None), pa.string()), faults


def _utf8(column: pa.Array, role: str) -> tuple[pa.Array, list[Rule]]:
    """Read bytes that are text in UTF-8; others are faults."""
    texts: list[str | None] = []
    for value in column.to_pylist():
        try:
            texts.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            texts.append(None)
    ids = pa.array(texts, pa.string())
    bad = np.asarray(ids.is_null()) & ~np.asarray(column.is_null())
    return ids, _present((f"{role} id is not text in UTF-8", bad))


def _present(*rules: Rule) -> list[Rule]:
    return [(reason, mask) for reason, mask in rules if mask.any()]
