"""What the first lines of a source look like: settings to propose, never applied by `prepare`."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from raysys.errors import RaysysError
from raysys.log.columns import ColumnsConfig, ItemsColumnsConfig, guess, our_name
from raysys.log.formats.config import FormatConfig, typed_separator
from raysys.log.formats.contract import SourceFile
from raysys.log.formats.text import head, is_utf8
from raysys.log.readers import file_columns, make_reader
from raysys.log.sources import UNKNOWN, unreadable
from raysys.store.storage import open_filesystem

N = TypeVar("N", ColumnsConfig, ItemsColumnsConfig)

_SEPARATORS = ("\t", ",", ";", "|", "::", "^", "\x01", " ")
_ARCHIVES = (b"PK\x03\x04", b"7z\xbc\xaf", b"\xfd7zXZ", b"Rar!")
_LINES = 200
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}")
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_EARLIEST, _LATEST_S = 10**8, 4 * 10**18


def propose(file: SourceFile, settings: FormatConfig, columns: N) -> tuple[FormatConfig, N]:
    """Return the settings completed by what the first lines look like; those given stay.

    Args:
        file: the first file of a source; its format may be unknown.
        settings: as given.
        columns: as given.
    """
    kind = settings.kind or (file.format if file.format != UNKNOWN else None)
    raw = _start(file)
    if kind is None:
        kind = _kind(raw)
        settings = dataclasses.replace(settings, kind=kind)
    header: list[str] | None = None
    if kind in ("csv", "tsv"):
        settings, columns, header = _text_settings(file, kind, settings, columns, raw)
    if header is None:
        try:
            reader = make_reader(kind, settings, columns.names)
            header = [column.name for column in file_columns(reader, file)]
        except RaysysError:
            header = []
    header += [name for name, _ in file.constants]
    return settings, _mapped(columns, header)


def words(prefix: str, before: object, after: object) -> list[str]:
    """Return the `prefix.key=value` words that turn one dataclass into another."""
    found = []
    for field in dataclasses.fields(after):  # type: ignore[arg-type]
        old, new = getattr(before, field.name), getattr(after, field.name)
        if new != old and new is not None:
            found.append(f"{prefix}.{field.name}={typed_value(new)}")
    return found


def hint(file: SourceFile, settings: FormatConfig, columns: N, *, prefix: str = "") -> str:
    """Return `; try key=value ...` for a source that cannot be read as it was asked for, or "".

    Args:
        file: the first file of the source.
        settings: as given.
        columns: as given.
        prefix: `items_` for the catalogue.
    """
    if _start(file).startswith(_ARCHIVES):
        return "; it is an archive or a spreadsheet: write its rows as CSV or Parquet"
    if file.format != UNKNOWN and _start(file).lstrip().startswith(b"[") and file.format == "jsonl":
        return "; it looks like one JSON array: write one object a line"
    proposed, named = propose(file, settings, columns)
    keys = words(f"{prefix}format", settings, proposed) + words(f"{prefix}columns", columns, named)
    return f"; try {' '.join(shlex.quote(word) for word in keys)}" if keys else ""


def typed_value(value: object) -> str:
    """Return a value as it is typed after `key=`."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, list):
        return str(value).replace("\t", "\\t").replace("\x01", "\\x01")
    plain = re.compile(r"[\w.@/+-]([\w .@/+-]*[\w.@/+-])?")
    return f"[{','.join(v if plain.fullmatch(v) else json.dumps(v) for v in value)}]"


def _start(file: SourceFile) -> bytes:
    filesystem, path = open_filesystem(file.uri)
    try:
        with filesystem.open_input_stream(path) as stream:
            data: bytes = stream.read(1 << 16)
    except (OSError, EOFError) as error:
        raise unreadable(file, error) from error
    return data


def _kind(raw: bytes) -> str:
    if raw.startswith(b"PAR1"):
        return "parquet"
    return "jsonl" if raw.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{") else "csv"


def _encoding(raw: bytes) -> str | None:
    """Return the encoding to name; None for UTF-8 and where a mark stands."""
    if raw.startswith(_MARKS):
        return None
    if raw[:1000].count(0) > len(raw[:1000]) // 4:
        return "utf-16-le" if raw[1:2] == b"\0" else "utf-16-be"
    whole = raw[: raw.rfind(b"\n") + 1 or None]
    if is_utf8(whole):
        return None
    return "cp1252" if any(0x80 <= byte < 0xA0 for byte in whole) else "latin-1"


def _text_settings(
    file: SourceFile, kind: str, settings: FormatConfig, columns: N, raw: bytes
) -> tuple[FormatConfig, N, list[str] | None]:
    """Return the settings of delimited text, and the header where it stands in the file."""
    encoding = settings.encoding or _encoding(raw)
    text = head(file, encoding, size=1 << 16).decode("utf-8", "replace")
    quotes = [settings.quote] if settings.quote is not None else [None]
    best = (0.0, 0, 0.0)
    chosen, rows = settings, [[""]]
    for separator in [settings.separator] if settings.separator else _SEPARATORS:
        for quote in quotes:
            for escape in [settings.escape] if settings.escape is not None else ["", "\\"]:
                mark = ('"' if separator != "\t" else "") if quote is None else quote
                found = _split(text, typed_separator(separator), mark, escape)
                width, share = _width(found)
                score = (round(share, 2) if width > 1 else 0.0, width, -len(escape))
                if score > best and (not escape or escape in text):
                    best, rows = score, found
                    chosen = dataclasses.replace(
                        settings, separator=separator, escape=escape or settings.escape
                    )
    default = "\t" if kind == "tsv" else ","
    if settings.separator is None and chosen.separator == default:
        chosen = dataclasses.replace(chosen, separator=None)
    chosen = dataclasses.replace(chosen, encoding=encoding)
    if columns.names is not None or settings.header is not None or not rows[0]:
        return chosen, columns, None
    if not _is_data(rows[0]):
        return chosen, columns, None
    catalogue = isinstance(columns, ItemsColumnsConfig)
    names = _item_names(rows) if catalogue else _names(rows)
    return chosen, dataclasses.replace(columns, names=names), None


def _split(text: str, separator: str, quote: str, escape: str) -> list[list[str]]:
    """Return the fields of the first lines that are not blank."""
    lines = [line for line in text.splitlines() if line.strip()][:_LINES]
    if len(separator) > 1:
        parts = (line.split(separator) for line in lines)
        return [[value.strip(quote or None) for value in row] for row in parts] or [[""]]
    reader = csv.reader(
        (line + "\n" for line in lines),
        delimiter=separator,
        quotechar=quote or None,
        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
        escapechar=escape or None,
        doublequote=not escape,
    )
    try:
        return [row for row in reader if row] or [[""]]
    except csv.Error:
        return [[""]]


def _width(rows: Sequence[Sequence[str]]) -> tuple[int, float]:
    """Return the most common number of fields, and the share of rows that have it."""
    width, count = Counter(len(row) for row in rows).most_common(1)[0]
    return width, count / len(rows)


def _is_data(first: Sequence[str]) -> bool:
    """Tell whether a first row holds values: a header has no numbers and names nothing twice."""
    return any(_NUMBER.fullmatch(value.strip()) or _DATE.match(value) for value in first)


def _names(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return names for columns without header: ids first, a rating and a time by their values."""
    width, _ = _width(rows)
    columns = [[row[k].strip() for row in rows if len(row) == width] for k in range(width)]
    names: list[str] = []
    for number, values in enumerate(columns):
        role = next((r for r in ("timestamp", "rating") if r not in names and _FITS[r](values)), "")
        if "item_id" not in names and (not role or (role == "rating" and len(names) < 2)):
            role = "item_id" if "user_id" in names else "user_id"
        names.append(role or f"column{number + 1}")
    return names


def _item_names(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return names for an item file without header: the id first, then the title."""
    width, _ = _width(rows)
    return [*("item_id", "title")[:width], *(f"column{k + 1}" for k in range(2, width))]


def _are_times(values: Sequence[str]) -> bool:
    if all(_DATE.match(value) for value in values):
        return True
    numbers = [float(value) for value in values if _NUMBER.fullmatch(value)]
    return len(numbers) == len(values) and all(_EARLIEST <= n <= _LATEST_S for n in numbers)


def _are_ratings(values: Sequence[str]) -> bool:
    numbers = {float(value) for value in values if _NUMBER.fullmatch(value)}
    return all(_NUMBER.fullmatch(v) for v in values) and len(numbers) <= 21 and max(numbers) <= 100


_FITS = {"timestamp": _are_times, "rating": _are_ratings}


def _mapped(columns: N, header: Sequence[str]) -> N:
    """Return the mapping with common names for what is not mapped and has no default column."""
    roles = [field.name for field in dataclasses.fields(columns) if field.name != "names"]
    changes: dict[str, Any] = {}
    for role in roles:
        default = "title" if role == "title" else our_name(role)
        if getattr(columns, role) is None and default not in header:
            name = guess(role, [name for name in header if name not in changes.values()])
            if name is not None:
                changes[role] = name
    return dataclasses.replace(columns, **changes)
