"""The item file: titles and attributes that a user brings for the catalogue."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Collection

import numpy as np
import pyarrow as pa

from raysys.data.attributes import joined
from raysys.data.values import to_ids
from raysys.errors import ConfigError, DataError
from raysys.log.columns import ItemsColumnsConfig
from raysys.log.formats.config import FormatConfig
from raysys.log.formats.contract import SourceFile
from raysys.log.readers import Source, read_chunks
from raysys.log.sniff import hint
from raysys.log.sources import list_files
from raysys.prepare.opened_log import open_source

log = logging.getLogger(__name__)


def list_item_files(items: str, settings: FormatConfig) -> list[SourceFile]:
    """Return the files of `items=`.

    Raises:
        DataError: there are none; the message names the key.
    """
    try:
        return list_files(items, settings.kind, any_ending=True)
    except DataError as error:
        raise DataError(str(error).replace("source=", "items=")) from error


def open_items(items: str, settings: FormatConfig, columns: ItemsColumnsConfig) -> Source:
    """Return the files of `items=` and their reader.

    Raises:
        DataError: there are none; the message names the key. ConfigError: a setting does not fit.
    """
    try:
        return open_source(items, settings, columns, prefix="items_")
    except DataError as error:
        raise DataError(str(error).replace("source=", "items=")) from error


def read_items(
    source: Source,
    settings: FormatConfig,
    columns: ItemsColumnsConfig,
    *,
    log_column: str | None = None,
    max_bad_share: float = 0.01,
) -> pa.Table:
    """Return the item file with its ids as strings in `item_id`, one row per id.

    Values of delimited text are text; JSON and Parquet values are as they are.

    Args:
        source: of `open_items`.
        settings: how it is read.
        columns: which columns it has.
        log_column: name of the id column in the log, tried here too.
        max_bad_share: share of rows that may be left out.

    Raises:
        ConfigError: a column is not there. DataError: the files cannot be read, hold no items, a
            column twice, or too many bad rows.
    """
    uri = source.files[0].uri
    if source.repeated():
        raise DataError(f"items={uri}: column {source.repeated()}; columns need names of their own")
    seen = source.columns(late=[name for name in (columns.item, columns.title) if name])
    key = columns.item or (log_column if log_column in seen else None) or "item_id"
    asked = {"item": columns.item or log_column or key, "title": columns.title}
    for role, name in {"item": key, "title": columns.title}.items():
        if name and name not in seen:
            more = hint(source.files[0], settings, columns, prefix="items_")
            raise ConfigError(_missing(uri, role, asked[role] or name, seen) + more)
    table = _read(source, max_bad_share)
    ids = to_ids(_one(table[key]), "item")
    table = table.drop_columns([key, *_replaced(key, columns.title, seen)])
    if columns.title not in (None, "title"):
        table = table.rename_columns({columns.title: "title"})
    table = table.add_column(0, "item_id", ids).filter(ids.is_valid())
    if not len(table):
        raise DataError(f"items={uri} holds no items")
    return _first_of_each(table)


def _missing(uri: str, role: str, name: str, seen: Collection[str]) -> str:
    near = difflib.get_close_matches(name, seen, n=1, cutoff=0.0)
    return (
        f"items={uri} has no column {name!r} (items_columns.{role}): it has {', '.join(seen)}"
        + (f"; did you mean {near[0]!r}?" if near else "")
    )


def _replaced(key: str, title: str | None, seen: Collection[str]) -> list[str]:
    """Return the columns whose names the id and the title take, with a warning."""
    taken = [("item_id", key)] + ([("title", title)] if title else [])
    gone = [name for name, column in taken if name != column and name in seen]
    for name in gone:
        log.warning("items column ignored name=%s reason=another_column_has_this_role", name)
    return gone


def _read(source: Source, max_bad_share: float) -> pa.Table:
    """Return all rows that can be read; the others are counted and warned about."""
    tables, n_bad, example = [], 0, ""
    for piece in source.pieces():
        for chunk in read_chunks(source.reader, piece):
            tables.append(chunk.table)
            n_bad += len(chunk.malformed)
            for bad in chunk.malformed[: not example]:
                example = f"{piece.file.name} line {bad.line}: {bad.reason} {bad.text!r}"
    table = joined(tables)
    n_rows = len(table) + n_bad
    if n_bad:
        log.warning("items left out rows=%d of %d example=%s", n_bad, n_rows, example)
    if n_bad > max_bad_share * n_rows:
        raise DataError(
            f"items={source.files[0].uri}: {n_bad} of {n_rows} rows cannot be read "
            f"(max_bad_share={max_bad_share}); {example}"
        )
    return table


def _one(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks or [pa.array([], pa.string())])


def _first_of_each(table: pa.Table) -> pa.Table:
    """Return the first row of each id, in order."""
    numbered = pa.table({"id": table["item_id"], "row": np.arange(len(table))})
    first = numbered.group_by("id", use_threads=False).aggregate([("row", "min")])
    rows = np.sort(first["row_min"].to_numpy())
    if len(rows) < len(table):
        log.warning("items repeated ids=%d action=first_kept", len(table) - len(rows))
    return table.take(pa.array(rows))
