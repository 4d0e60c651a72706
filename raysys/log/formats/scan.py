r"""The exact reading of delimited text: one pass over the bytes, compiled.

A row is the fields of one line. A value that begins with the quote may hold separators, and:

- on its line it ends at the first quote before a separator or line end; quotes inside are doubled
  or escaped. After a bare quote the value goes on to the next separator: `"He said "hi" to me"` is
  the text between its outer quotes, `"Weird" Al` is `Weird Al`, as the csv module has it;
- over several lines all quotes inside are doubled or escaped, it ends within `LOOK_AHEAD` bytes,
  and the row has the right number of fields. Else the quote is a stray one: its line alone is bad,
  and reading goes on with the next line, so that no quote swallows rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysys.data.compiled import compiled

LOOK_AHEAD = 1 << 20
WRONG_FIELDS, STRAY_QUOTE = 0, 1
PLAIN, ESCAPED, NULL, JOINED = 0, 1, 2, 3
_SUSPICIOUS_LINES = 4  # so many lines that all look like rows are rows behind a stray quote
_LF, _CR, _BLANK, _TAB = 10, 13, 32, 9

Bytes = NDArray[np.uint8]


@compiled
def scan_rows(
    data: Bytes,
    last: bool,
    separator: Bytes,
    marks: NDArray[np.int64],
    slots: NDArray[np.int64],
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    form: Bytes,
    rows: NDArray[np.int64],
    bad: NDArray[np.int64],
) -> tuple[int, int, int, int, int, int]:
    """Find rows and the fields that are wanted.

    Args:
        data: [L] bytes that begin with a row.
        last: the file ends with them; else a row that may go on is left for the next call.
        separator: [n >= 1] bytes.
        marks: quote and escape, -1 for none.
        slots: [n_fields] where a field goes, -1 for nowhere.
        begin: [n_slots, M] filled with the place of each value.
        end: [n_slots, M] filled with where it ends.
        form: [n_slots, M] filled with how it is written.
        rows: [M, 3] filled with line (from 0), begin and end of each row.
        bad: [M, 4] filled with line, begin, end and reason of each line that is no row.

    Returns:
        bytes consumed, lines, rows, bad lines, blank lines, lines inside values.
    """
    n_fields = len(slots)
    n_rows = n_bad = n_blank = n_inside = line = 0
    start = 0
    while start < len(data):
        stop = _line_end(data, start)
        if stop == len(data) and not last:
            break
        after = stop + 1 if stop < len(data) else stop
        if _is_blank(data, start, stop, separator):
            n_blank += 1
            line += 1
            start = after
            continue
        fields, row_end, crossed = _scan_row(
            data, start, last, separator, marks, slots, begin, end, form, n_rows
        )
        if fields == -2:  # ran out of bytes
            break
        suspicious = crossed + 1 >= _SUSPICIOUS_LINES and n_fields >= 3
        if suspicious and _all_look_like_rows(data, start, row_end, separator, n_fields):
            fields = -1
        if fields == n_fields:
            rows[n_rows, 0], rows[n_rows, 1], rows[n_rows, 2] = line, start, row_end
            n_rows += 1
            n_inside += crossed
            line += crossed + 1
            start = row_end + 1 if row_end < len(data) else row_end
            continue
        bad[n_bad, 0], bad[n_bad, 1], bad[n_bad, 2] = line, start, stop
        bad[n_bad, 3] = STRAY_QUOTE if fields == -1 or crossed > 0 else WRONG_FIELDS
        n_bad += 1
        line += 1
        start = after
    return start, line, n_rows, n_bad, n_blank, n_inside


@compiled
def _scan_row(
    data: Bytes,
    start: int,
    last: bool,
    separator: Bytes,
    marks: NDArray[np.int64],
    slots: NDArray[np.int64],
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    form: Bytes,
    row: int,
) -> tuple[int, int, int]:
    """Return fields (-1: stray quote, -2: needs more bytes), where the row ends, lines crossed."""
    quote, escape = marks[0], marks[1]
    fields = crossed = 0
    at = start
    while True:
        how = PLAIN
        if quote >= 0 and at < len(data) and data[at] == quote:
            first = at + 1
            at, stop, how, lines = _scan_quoted(data, first, start, last, separator, marks, crossed)
            if at < 0:
                return at, start, crossed + lines
            crossed += lines
        else:
            first = at
            at, how = _scan_plain(data, at, separator, escape)
            stop = _without_return(data, first, at)
            if how == ESCAPED and stop - first == 2 and data[first + 1] == 78:  # \N
                how = NULL
        if fields < len(slots) and slots[fields] >= 0:
            slot = slots[fields]
            begin[slot, row], end[slot, row], form[slot, row] = first, stop, how
        fields += 1
        if at >= len(data) or data[at] == _LF:
            return fields, at, crossed
        at += len(separator)


@compiled
def _scan_plain(data: Bytes, at: int, separator: Bytes, escape: int) -> tuple[int, int]:
    """Return where a value without quotes ends, a return included, and its form."""
    how = PLAIN
    while at < len(data) and data[at] != _LF and not _matches(data, at, separator):
        if data[at] == escape:
            how = ESCAPED
            if at + 1 < len(data) and data[at + 1] != _LF:
                at += 1
        at += 1
    return at, how


@compiled
def _scan_quoted(
    data: Bytes,
    first: int,
    row_start: int,
    last: bool,
    separator: Bytes,
    marks: NDArray[np.int64],
    crossed_before: int,
) -> tuple[int, int, int, int]:
    """Return what follows the value (-1: stray, -2: unknown), its end, form, lines crossed."""
    quote, escape = marks[0], marks[1]
    how = PLAIN
    crossed = 0
    at = first
    while at < len(data):
        byte = data[at]
        if byte == escape:
            how = ESCAPED
            if at + 1 < len(data) and data[at + 1] != _LF:
                at += 1
        elif byte == quote:
            if at + 1 < len(data) and data[at + 1] == quote:
                how = ESCAPED
                at += 1
            elif _ends_field(data, at + 1, separator):
                following = at + 1
                if following < len(data) and data[following] == _CR:
                    following += 1
                return following, at, how, crossed
            elif crossed + crossed_before > 0:
                return -1, at, how, crossed
            else:  # a bare quote: the value goes on to the next separator
                following, _ = _scan_plain(data, at + 1, separator, escape)
                stop = _without_return(data, at + 1, following)
                if stop - 1 > at and data[stop - 1] == quote:
                    return following, stop - 1, how, crossed
                return following, stop, JOINED, crossed
        elif byte == _LF:
            if at - row_start > LOOK_AHEAD:
                return -1, at, how, crossed
            crossed += 1
        at += 1
    return (-1 if last else -2), at, how, crossed


@compiled
def _without_return(data: Bytes, first: int, at: int) -> int:
    """Return the end of a value that `at` ends, without the return before a line end."""
    ends_line = at >= len(data) or data[at] == _LF
    return at - 1 if ends_line and at > first and data[at - 1] == _CR else at


@compiled
def _matches(data: Bytes, at: int, separator: Bytes) -> bool:
    if data[at] != separator[0]:
        return False
    if at + len(separator) > len(data):
        return False
    for k in range(1, len(separator)):  # noqa: SIM110, numba compiles no generator
        if data[at + k] != separator[k]:
            return False
    return True


@compiled
def _ends_field(data: Bytes, at: int, separator: Bytes) -> bool:
    if at >= len(data) or data[at] == _LF or _matches(data, at, separator):
        return True
    return data[at] == _CR and (at + 1 >= len(data) or data[at + 1] == _LF)


@compiled
def _line_end(data: Bytes, at: int) -> int:
    while at < len(data) and data[at] != _LF:
        at += 1
    return at


@compiled
def _is_blank(data: Bytes, at: int, stop: int, separator: Bytes) -> bool:
    while at < stop:
        byte = data[at]
        if byte != _BLANK and byte != _CR and (byte != _TAB or separator[0] == _TAB):
            return False
        at += 1
    return True


@compiled
def _all_look_like_rows(data: Bytes, at: int, stop: int, separator: Bytes, n_fields: int) -> bool:
    """Tell whether every line, its quotes taken as text, has the right number of fields."""
    fields = 1
    while at < stop:
        if data[at] == _LF:
            if fields != n_fields:
                return False
            fields = 1
            at += 1
        elif _matches(data, at, separator):
            fields += 1
            at += len(separator)
        else:
            at += 1
    return fields == n_fields


@compiled
def gather_values(
    data: Bytes,
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    form: Bytes,
    marks: NDArray[np.int64],
    out: Bytes,
    offsets: NDArray[np.int32],
) -> None:
    r"""Copy the values of one column, doubled and escaped characters resolved.

    After a backslash, `n`, `t`, `r` and `0` stand for line feed, tab, return and NUL.

    Args:
        data: bytes.
        begin: [M] of `scan_rows`.
        end: [M] of `scan_rows`.
        form: [M] of `scan_rows`; NULL copies nothing.
        marks: quote and escape.
        out: filled; at least `sum(end - begin)` bytes.
        offsets: [M + 1] filled.
    """
    quote, escape = marks[0], marks[1]
    size = 0
    offsets[0] = 0
    for row in range(len(begin)):
        at, stop = begin[row], end[row]
        if form[row] == PLAIN:
            for k in range(at, stop):
                out[size] = data[k]
                size += 1
        elif form[row] == ESCAPED:
            while at < stop:
                byte = data[at]
                if byte == escape and at + 1 < stop:
                    at += 1
                    byte = _escaped(data[at]) if escape == 92 else data[at]
                elif byte == quote and at + 1 < stop and data[at + 1] == quote:
                    at += 1
                out[size] = byte
                size += 1
                at += 1
        elif form[row] == JOINED:
            closed = False
            while at < stop:
                byte = data[at]
                doubled = at + 1 < stop and data[at + 1] == quote
                at += 1
                if byte == quote and not closed:
                    if not doubled:
                        closed = True
                        continue
                    at += 1
                out[size] = byte
                size += 1
        offsets[row + 1] = size


@compiled
def _escaped(byte: Any) -> Any:
    if byte == 110:
        return np.uint8(_LF)
    if byte == 116:
        return np.uint8(_TAB)
    if byte == 114:
        return np.uint8(_CR)
    if byte == 48:
        return np.uint8(0)
    return byte
