"""Timestamps of any common form -> int64 UTC seconds.

Numbers are read by their size, row by row: below 1e11 seconds, below 1e14 milliseconds, below 1e17
microseconds, else nanoseconds (1e11 s is the year 5138, 1e11 ms is 1973). Text is a number, or
names its own order: ISO 8601 and what is near it (`2017-09-13 15:05:00 UTC`, `2017/9/13 15:05`),
RFC 2822 and the dates of web server logs; UTC where it names no zone. Every other form (month or
day first) needs a strptime format. Zones by letters other than UTC and GMT are not read: `CST` is
several.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raysys.errors import DataError

LATEST = 4_102_444_800  # 2100-01-01
ABSURD = "absurd timestamp"  # the reason of a row whose time is not from 1970 to 2100
FORMS = (
    "read are seconds to nanoseconds since 1970, ISO 8601 (2017-09-13 15:05:00 UTC, 2017/09/13) "
    "and RFC 2822; any other form needs format.time"
)

_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_UNITS = (("s", 1e11, 1), ("ms", 1e14, 10**3), ("us", 1e17, 10**6), ("ns", np.inf, 10**9))
_NUMBER = r"^\s*[+-]?\d+(\.\d*)?\s*$"
_MOMENT = (
    r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
    r"([ T]([01]\d|2[0-3])(:[0-5]\d(:[0-5]\d(\.\d{1,6})?)?)?)?"
)
_ZONE = r"(Z|[+-]\d\d(:?\d\d)?)"
# Towards what Arrow casts; a column is tried with none, each alone, and all in turn.
_REWRITES = (
    (r"\s*(UTC|GMT|Z)\s*$", "Z"),
    (r"(:\d\d([.,]\d+)?)\s+([+-]\d)", r"\1\3"),  # blanks before an offset
    (r"[.,](\d{1,6})\d*", r".\1"),  # at most microseconds
    (r"^\s*(\d{4})[/-](\d)([/-])", r"\1-0\2\3"),  # a month of one digit
    (r"^\s*(\d{4})[/-](\d\d)[/-](\d)(\D|$)", r"\1-\2-0\3\4"),
    (r"^\s*(\d{4})[/-](\d\d)[/-](\d\d)[T\s]+(\d):", r"\1-\2-\3 0\4:"),
    (r"^\s*(\d{4})[/-](\d\d)[/-](\d\d)[T\s]*", r"\1-\2-\3 "),
    (r"^(\d{4}-\d\d-\d\d)\s*Z?\s*$", r"\1"),
)
_PROBE = 100  # rows that are cast before the whole column is: a failing cast is slow
_NAMED = (  # months by name, the order of day and month is plain
    "%a, %d %b %Y %H:%M:%S %z",  # RFC 2822
    "%d %b %Y %H:%M:%S %z",
    "%d/%b/%Y:%H:%M:%S %z",  # web servers
    "%a %b %d %H:%M:%S %z %Y",
    "%a %b %d %H:%M:%S %Y",
)
_GUESSED_DATES = (
    *(order.replace("/", mark) for mark in "/-." for order in ("%m/%d/%Y", "%d/%m/%Y")),
    *("%m/%d/%y", "%d/%m/%y", "%d.%m.%y", "%m %d, %Y", "%Y%m%d", "%Y.%m.%d"),
    *("%b %d, %Y", "%B %d, %Y", "%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d %Y"),
)
_GUESSED_TIMES = (
    "",
    *("%H:%M", "%H:%M:%S", "%H:%M:%S.%f", "%I:%M %p", "%I:%M:%S %p", "%I:%M%p", "%I:%M:%S%p"),
    *("%H:%M:%S %z", "%H.%M.%S", "%H%M%S"),
)


def to_seconds(
    column: pa.Array, *, form: str | None = None
) -> tuple[pa.Array, NDArray[np.bool_], dict[str, int]]:
    """Return UTC seconds, the rows that are not a time from 1970 to 2100, and rows per unit.

    Args:
        column: [M] integers, floats, text, dates or Arrow timestamps.
        form: strptime format of text and whole numbers; rows that do not match it are bad. Dates
            and Arrow timestamps are read as they are.

    Returns:
        int64 array [M], null where the time is missing or bad; mask [M] of bad rows; {unit: rows}
        with units s, ms, us, ns, iso and format.

    Raises:
        DataError: the column is of another type.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), column.type.value_type
    if pa.types.is_null(kind):
        return pa.nulls(len(column), pa.int64()), np.zeros(len(column), dtype=bool), {}
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        column, kind = _decoded(column), pa.string()
    text = any(test(kind) for test in _TEXT)
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        seconds, bad, units = _from_typed(column)
    elif form is not None and (numbers or text):
        seconds, bad, units = _from_form(pc.cast(column, pa.string()), form)
    elif numbers:
        seconds, bad, units = _from_numbers(column)
    elif text:
        seconds, bad, units = _from_text(pc.cast(column, pa.string()))
    else:
        raise DataError(f"a timestamp column of type {kind} is not understood")
    present = ~np.asarray(column.is_null())
    bad = present & (bad | (seconds < 0) | (seconds > LATEST))
    used = {unit: count for unit, count in units.items() if count}
    return pa.array(seconds, mask=~present | bad), bad, used


def guess_forms(examples: Sequence[str]) -> list[str]:
    """Return at most two strptime formats that read all the examples, month first before day."""
    texts = [text.strip() for text in examples if text.strip()]
    marks = [(" ", time) if time else ("", "") for time in _GUESSED_TIMES]
    marks += [(mark, time) for time in _GUESSED_TIMES if time for mark in (", ", "T", "")]
    forms = (date + mark + time for date, (mark, time) in itertools.product(_GUESSED_DATES, marks))
    if not texts:
        return []
    fitting = (f for f in forms if all(_by_form(text, f) is not None for text in texts))
    return list(itertools.islice(fitting, 2))


def advice(examples: Sequence[str]) -> str:
    """Return the forms that are read and a setting that would read the examples, for an error."""
    forms = guess_forms(examples)
    keys = " or ".join(f'format.time="{form}"' for form in forms or ["%m/%d/%Y %I:%M:%S %p"])
    return f"{FORMS}, {'here' if forms else 'for example'} {keys}"


def _decoded(column: pa.Array) -> pa.Array:
    try:
        return pc.cast(column, pa.string())
    except pa.ArrowInvalid as error:
        raise DataError(f"a timestamp column of bytes is not UTF-8 text: {error}") from error


def _from_typed(column: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.bool_], dict[str, int]]:
    micro = pc.cast(column, pa.timestamp("us"), safe=False).cast(pa.int64())
    seconds = pc.fill_null(micro, -1).to_numpy(zero_copy_only=False) // 10**6
    return seconds, np.zeros(len(seconds), dtype=bool), {"iso": len(micro) - micro.null_count}


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
        parsed = _from_calendar(column.take(pa.array(rows)))
        seconds[rows], bad[rows] = parsed, parsed < 0
        units["iso"] = int((parsed >= 0).sum())
    return seconds, bad, units


def _parse_numbers(text: pa.Array) -> pa.Array:
    """Parse as integers where possible: floats lose seconds beyond 2^53 nanoseconds."""
    try:
        return pc.cast(text, pa.int64())
    except pa.ArrowInvalid:
        return pc.cast(text, pa.float64())


def _from_form(
    column: pa.Array, form: str
) -> tuple[NDArray[np.int64], NDArray[np.bool_], dict[str, int]]:
    present = ~np.asarray(column.is_null())
    seconds = _each_distinct(pc.fill_null(column, ""), lambda text: _by_form(text.strip(), form))
    bad = seconds < 0
    return seconds, bad, {"format": int((present & ~bad).sum())}


def _from_calendar(text: pa.Array) -> NDArray[np.int64]:
    """Return UTC seconds of dates that name their own order, -1 where there is none."""
    bare = _without_suffix(text)
    for rewrites in ((), *((each,) for each in _REWRITES), _REWRITES):
        if _cast(_rewritten(bare[:_PROBE], rewrites)) is not None:
            seconds = _cast(_rewritten(bare, rewrites))
            if seconds is not None:
                return seconds
    return _from_mixed(text, _rewritten(text, _REWRITES))


def _rewritten(text: pa.Array, rewrites: Sequence[tuple[str, str]]) -> pa.Array:
    for pattern, replacement in rewrites:
        text = pc.replace_substring_regex(text, pattern, replacement)
    return text


def _without_suffix(text: pa.Array) -> pa.Array:
    """Return text without the ` UTC` that all of it ends with, else as it is."""
    for suffix in (" UTC", " GMT"):
        if pc.all(pc.ends_with(text, suffix)).as_py():
            return pc.utf8_slice_codeunits(text, 0, -len(suffix))
    return text


def _cast(text: pa.Array) -> NDArray[np.int64] | None:
    """Cast ISO 8601 text, all with or all without a zone; None where one does not fit."""
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            pc.cast(text[:_PROBE], kind)
            seconds: NDArray[np.int64] = pc.cast(text, kind).cast(pa.int64()).to_numpy() // 10**6
        except pa.ArrowInvalid:
            continue
        return seconds
    return None


def _from_mixed(text: pa.Array, rewritten: pa.Array) -> NDArray[np.int64]:
    """Cast what has the shape of ISO 8601, read the distinct values of the rest one by one."""
    seconds = np.full(len(text), -1, dtype=np.int64)
    left = np.ones(len(text), dtype=bool)
    for zone in ("", _ZONE):
        shape = pc.match_substring_regex(rewritten, f"^{_MOMENT}{zone}$")
        part = _cast(rewritten.filter(shape))
        if part is not None:  # else a day that is not in the calendar
            rows = shape.to_numpy(zero_copy_only=False)
            seconds[rows], left[rows] = part, False
    seconds[left] = _each_distinct(text.filter(pa.array(left)), _calendar_reader())
    return seconds


def _each_distinct(text: pa.Array, read: Callable[[str], float | None]) -> NDArray[np.int64]:
    """Return what `read` makes of every text [M], -1 for None."""
    encoded = text.dictionary_encode()
    values = [read(value) for value in encoded.dictionary.to_pylist()]
    seconds = np.array([-1 if v is None else int(v // 1) for v in values], dtype=np.int64)
    result: NDArray[np.int64] = seconds[encoded.indices.to_numpy()]
    return result


def _calendar_reader() -> Callable[[str], float | None]:
    """Return a function that reads one text; it tries first what it read last."""
    forms = list(_NAMED)

    def read(text: str) -> float | None:
        iso = text = text.strip()
        for pattern, replacement in _REWRITES:
            iso = re.sub(pattern, replacement, iso, flags=re.ASCII)
        try:
            return _utc(datetime.datetime.fromisoformat(iso))
        except ValueError:
            pass
        if not re.search("[A-Za-z]{3}", text):
            return None
        text = re.sub(r"(?:\s*Z|\s+UT)$", " +0000", re.sub(r"\b(?:UTC|GMT)\b", "+0000", text))
        for number, form in enumerate(forms):
            seconds = _by_form(text, form)
            if seconds is not None:
                forms.insert(0, forms.pop(number))
                return seconds
        return None

    return read


def _by_form(text: str, form: str) -> float | None:
    """Return UTC seconds of a text in a strptime format, or None."""
    if "%Z" in form and not re.search(r"\b(?:UTC|GMT)\b", text, re.IGNORECASE):
        return None  # strptime would take the zone of this machine for UTC
    try:
        return _utc(datetime.datetime.strptime(text, form))
    except ValueError:
        return None


def _utc(time: datetime.datetime) -> float:
    return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).timestamp()
