"""The item file: titles and attributes that a user brings for the catalogue."""

from __future__ import annotations

import difflib
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv
from pyarrow import json as pajson

from raysys.data.interactions import to_ids
from raysys.data.readers import check_same_columns
from raysys.data.sources import SourceFile, list_files, unreadable
from raysys.errors import ConfigError, DataError
from raysys.storage import open_filesystem

log = logging.getLogger(__name__)


def read_items(files: list[SourceFile], *, column: str | None) -> pa.Table:
    """Return the item file with its ids as strings in `item_id`, one row per id.

    Args:
        files: of `list_item_files`.
        column: name of the id column, default `item_id`.

    Raises:
        ConfigError: there is no such column. DataError: the file cannot be read or is empty.
    """
    names = check_same_columns(files).names
    key = column if column and column in names else "item_id"
    if key not in names:
        near = difflib.get_close_matches(column or key, names, n=1, cutoff=0.0)
        raise ConfigError(
            f"items={files[0].uri} has no column {column or key!r}: it has {', '.join(names)}; "
            f"did you mean {near[0]!r}?"
        )
    parts = [_read(file, key) for file in files]
    table = pa.concat_tables(parts, promote_options="permissive").combine_chunks()
    ids = to_ids(pa.concat_arrays(table[key].chunks or [pa.array([], pa.string())]), "item")
    table = table.drop_columns([key]).add_column(0, "item_id", ids).filter(ids.is_valid())
    if not len(table):
        raise DataError(f"items={files[0].uri} holds no items")
    numbered = pa.table({"id": table["item_id"], "row": np.arange(len(table))})
    first = numbered.group_by("id", use_threads=False).aggregate([("row", "min")])
    rows = np.sort(first["row_min"].to_numpy())
    if len(rows) < len(table):
        log.warning("items repeated ids=%d action=first_kept", len(table) - len(rows))
    return table.take(pa.array(rows))


def list_item_files(items: str) -> list[SourceFile]:
    """Return the files of `items=`.

    Raises:
        DataError: there are none; the message names the key.
    """
    try:
        return list_files(items)
    except DataError as error:
        raise DataError(str(error).replace("source=", "items=")) from error


def _read(file: SourceFile, key: str) -> pa.Table:
    filesystem, path = open_filesystem(file.uri)
    try:
        if file.format == "parquet":
            return pq.read_table(path, filesystem=filesystem)
        with filesystem.open_input_stream(path) as stream:
            if file.format == "jsonl":
                return pajson.read_json(stream)
            # Other columns take the type that their values suggest; ids keep leading zeros.
            types = {key: pa.string(), "title": pa.string()}
            return csv.read_csv(
                stream,
                parse_options=csv.ParseOptions(
                    delimiter="\t" if file.format == "tsv" else ",", newlines_in_values=True
                ),
                convert_options=csv.ConvertOptions(column_types=types),
            )
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error
