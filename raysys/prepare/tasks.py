"""The four pieces of work of `prepare`, file to file: each runs in one process on bounded memory.

    read_piece    piece of the source -> one file of batches by user bucket (+ quarantine)
    merge_buckets those batches of some buckets -> one part of the interactions
    count_part    part -> statistics
    write_user_shard   part -> user shard

Folders are local paths or URIs; every function writes the same files when it runs again.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from raysys.data.interactions import part_name, quarantine_name
from raysys.data.schema import RatingLevels
from raysys.log.formats.contract import Chunk, Piece, Reader, Tally
from raysys.log.readers import read_chunks
from raysys.log.timestamps import ABSURD, advice
from raysys.prepare.catalogue import (
    TEXT_COLUMNS,
    PartStatistics,
    number_part,
    read_rows,
    statistics,
)
from raysys.prepare.clean import (
    QUARANTINE_SCHEMA,
    TEXT_VALUES,
    Cleaned,
    EventRules,
    LogTraits,
    clean,
    partition,
    user_buckets,
)
from raysys.prepare.merge import merge
from raysys.prepare.splits import SplitPlan, audit
from raysys.store.erasures import Erasures
from raysys.store.storage import open_filesystem

_TIMES_SHOWN = 100  # to the guess of their form
_WRITE: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "store_schema": False,  # encoded text reads back as strings
    "dictionary_pagesize_limit": 1 << 26,
}


@dataclasses.dataclass(frozen=True)
class PieceResult:
    """What `read_piece` found.

    Attributes:
        paths: files of `N_BUCKETS` batches, one per chunk.
        n_rows: rows read.
        reasons: quarantined rows per reason.
        units: rows per timestamp unit.
        n_ignored: rows of ignored events and erased users.
        n_erased: rows of erased users.
        n_rated, n_events, n_timed: good rows that have one.
        present: {our column: rows read that have a value}.
        odd: {our column: rows whose value is neither text nor a number}.
        tally: what became of the lines of text; all 0 for Parquet.
        rating_range: their lowest and highest rating, None where there is none.
        example: one quarantined row in words, or "".
    """

    paths: tuple[str, ...]
    n_rows: int
    reasons: dict[str, int]
    units: dict[str, int]
    n_ignored: int
    n_erased: int
    n_rated: int
    n_events: int
    n_timed: int
    present: dict[str, int]
    odd: dict[str, int]
    tally: Tally
    rating_range: tuple[float, float] | None
    example: str


@dataclasses.dataclass(frozen=True)
class MergeTask:
    """Buckets `first` .. `last` (excluded) become part `number`.

    Attributes:
        earlier: part of an earlier build that holds these buckets, perhaps among others.
    """

    number: int
    first: int
    last: int
    earlier: str | None = None


@dataclasses.dataclass(frozen=True)
class MergeResult:
    """What `merge_buckets` wrote.

    Attributes:
        name: the part's file name.
        n_rows, n_users, n_duplicates, n_untimed: rows written, their users, rows removed.
        time_range: first and last second, None without time.
    """

    name: str
    n_rows: int
    n_users: int
    n_duplicates: int
    n_untimed: int
    time_range: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class UserShardTask:
    """The part at `uri` becomes `name`; its first user is `first_user`."""

    uri: str
    name: str
    first_user: int


@dataclasses.dataclass(frozen=True)
class UserShardResult:
    """What `write_user_shard` wrote: cells, and rows that became none."""

    n_cells: int
    n_rare: int
    n_unknown_level: int
    windows: list[int]


@dataclasses.dataclass(frozen=True)
class ReadPlan:
    """How the rows of a log are read and judged.

    Attributes:
        reader: of the log's format.
        columns: {our name: the log's name}.
        rating_range: lowest and highest rating accepted.
        events: which events are accepted and ignored.
        time_form: how times are written, in strptime's notation.
        erasures: users whose rows are left out.
    """

    reader: Reader
    columns: Mapping[str, str]
    rating_range: tuple[float | None, float | None] = (None, None)
    events: EventRules | None = None
    time_form: str | None = None
    erasures: Erasures | None = None

    def cleaned(self, piece: Piece) -> Iterator[tuple[Chunk, Cleaned]]:
        """Yield the chunks of a piece, raw and cleaned.

        Raises:
            DataError: the file cannot be read, or a column not understood.
        """
        for chunk in read_chunks(self.reader, piece, list(dict.fromkeys(self.columns.values()))):
            yield (
                chunk,
                clean(
                    chunk,
                    file=piece.file.name,
                    columns=self.columns,
                    rating_range=self.rating_range,
                    events=self.events if "event" in self.columns else None,
                    time_form=self.time_form,
                    erasures=self.erasures,
                ),
            )


def read_piece(
    task: tuple[int, Piece], *, plan: ReadPlan, folder: str, shuffle: str
) -> PieceResult:
    """Clean the rows of a piece and write them by user bucket."""
    number, piece = task
    filesystem, root = open_filesystem(shuffle)
    filesystem.create_dir(root, recursive=True)
    paths: list[str] = []
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in ("reasons", "units", "present", "odd")
    }
    bad: list[pa.Table] = []
    n_rows = n_ignored = n_erased = n_rated = n_events = n_timed = 0
    tally = Tally()
    ratings: list[float] = []  # lowest and highest of every chunk
    for chunk, cleaned in plan.cleaned(piece):
        paths.append(f"{root}/piece-{number:05d}-{len(paths):05d}.arrow")
        with (
            filesystem.open_output_stream(paths[-1]) as stream,
            pa.ipc.new_file(stream, cleaned.rows.schema) as out,  # one dictionary per file
        ):
            for batch in partition(cleaned.rows):
                out.write_batch(batch)
        n_rows += chunk.table.num_rows + len(chunk.malformed)
        n_ignored += cleaned.n_ignored
        n_erased += cleaned.n_erased
        n_rated += len(cleaned.rows) - cleaned.rows["rating"].null_count
        ends = pc.min_max(cleaned.rows["rating"]).as_py().values()
        ratings += [end for end in ends if end is not None]
        n_events += len(cleaned.rows) - cleaned.rows["event"].null_count
        n_timed += len(cleaned.rows) - cleaned.rows["timestamp"].null_count
        counts["units"].update(cleaned.units)
        counts["reasons"].update(cleaned.bad["reason"].to_pylist())
        counts["present"].update(present_values(chunk, plan.columns))
        counts["odd"].update(odd_values(chunk, plan.columns))
        tally.add(chunk.tally or Tally())
        bad.append(cleaned.bad)
    example = _quarantine(bad, folder, quarantine_name(f"piece-{number:05d}.parquet"))
    return PieceResult(
        paths=tuple(paths),
        n_rows=n_rows,
        n_ignored=n_ignored,
        n_erased=n_erased,
        n_rated=n_rated,
        n_events=n_events,
        n_timed=n_timed,
        tally=tally,
        rating_range=(min(ratings), max(ratings)) if ratings else None,
        example=example,
        **{name: dict(count) for name, count in counts.items()},
    )


def present_values(chunk: Chunk, columns: Mapping[str, str]) -> dict[str, int]:
    """Return {our column: rows of the chunk that have a value}."""
    found = {name: c for name, c in columns.items() if c in chunk.table.column_names}
    return {name: len(chunk.table) - chunk.table[c].null_count for name, c in found.items()}


def odd_values(chunk: Chunk, columns: Mapping[str, str]) -> dict[str, int]:
    """Return {our column: rows of the chunk whose value is neither text nor a number}."""
    found = {name: column for name, column in columns.items() if column in chunk.odd}
    return {name: int(chunk.odd[column].sum()) for name, column in found.items()}


def merge_buckets(
    task: MergeTask,
    *,
    pieces: list[PieceResult],
    shuffle: str,
    folder: str,
    traits: LogTraits,
    keep: str,
) -> MergeResult:
    """Merge the batches of some buckets into one part."""
    filesystem, _ = open_filesystem(shuffle)
    tables = []
    for path in (path for piece in pieces for path in piece.paths):
        with _mapped(filesystem, path) as stream, pa.ipc.open_file(stream) as file:
            batches = [file.get_batch(bucket) for bucket in range(task.first, task.last)]
            tables.append(_one_chunk(batches, file.schema))
    if task.earlier is not None:
        tables.append(_earlier_rows(task))
    merged = merge(tables, traits=traits, keep=keep)
    name = part_name(task.number)
    _write(merged.rows, folder, name)
    _quarantine([merged.bad], folder, quarantine_name(name))
    times = pc.min_max(merged.rows["timestamp"]).as_py()
    return MergeResult(
        name=name,
        n_rows=len(merged.rows),
        n_users=merged.n_users,
        n_duplicates=merged.n_duplicates,
        n_untimed=len(merged.bad),
        time_range=None if times["min"] is None else (times["min"], times["max"]),
    )


def _earlier_rows(task: MergeTask) -> pa.Table:
    """Return the rows of an earlier part that belong to the task's buckets."""
    assert task.earlier is not None
    filesystem, path = open_filesystem(task.earlier)
    table = pq.read_table(path, filesystem=filesystem, read_dictionary=TEXT_COLUMNS)
    table = table.unify_dictionaries().combine_chunks()
    if not len(table):
        return table
    users = table["user_id"].chunk(0)
    bucket = user_buckets(users.dictionary)
    inside = ((bucket >= task.first) & (bucket < task.last))[users.indices.to_numpy()]
    return table.filter(pa.array(inside))


def count_part(
    uri: str, *, plan: SplitPlan, has_time: bool, excluded: pa.Array | None = None
) -> PartStatistics:
    """Count one part of the interactions."""
    return statistics(read_rows(uri), plan, has_time=has_time, excluded=excluded)


def write_user_shard(
    task: UserShardTask,
    *,
    plan: SplitPlan,
    item_ids: pa.Array,
    levels: RatingLevels,
    n_fit_items: int,
    folder: str,
    excluded: pa.Array | None = None,
) -> UserShardResult:
    """Number one part, check it for leaks and write it as a user shard.

    Raises:
        DataError: a window knows what it must not know.
    """
    numbered = number_part(
        read_rows(task.uri),
        plan,
        item_ids=item_ids,
        levels=levels,
        first_user=task.first_user,
        excluded=excluded,
    )
    cells = numbered.cells
    audit(
        cells,
        split=plan.split,
        cutoffs=plan.cutoffs,
        n_fit_items=n_fit_items,
        shared_second=plan.given,
        user=lambda num: repr(numbered.users[num - task.first_user].as_py()),
        item=lambda num: repr(item_ids[num].as_py()),
    )
    _write(cells.to_table(), folder, task.name)
    windows = [int((cells.window == window).sum()) for window in range(5)]
    return UserShardResult(cells.n_cells, numbered.n_rare, numbered.n_unknown_level, windows)


def _mapped(filesystem: pafs.FileSystem, path: str) -> pa.NativeFile:
    """Open a file of batches; of a local one only the pages that are looked at are read.

    A task takes a few batches of every file, each of which has the ids of all.
    """
    if isinstance(filesystem, pafs.LocalFileSystem):
        return pa.memory_map(path)
    return filesystem.open_input_file(path)


def _one_chunk(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """Join the batches of one file, whose dictionaries are the same; keep what they use of these.

    There are as many files as pieces of the log: their whole dictionaries would fill the memory.
    """
    columns = []
    for number, field in enumerate(schema):
        chunks = [batch.column(number) for batch in batches]
        if pa.types.is_dictionary(field.type):
            codes = pa.concat_arrays([chunk.indices for chunk in chunks])
            used = codes.drop_null().unique().sort()
            places = pc.index_in(codes, value_set=used)
            values = chunks[0].dictionary.take(used)
            columns.append(pa.DictionaryArray.from_arrays(places, values))
        else:
            columns.append(pa.concat_arrays(chunks))
    return pa.table(columns, names=schema.names)


def _quarantine(tables: list[pa.Table], folder: str, name: str) -> str:
    """Write quarantined rows where there are any; return one of the commonest kind in words."""
    table = pa.concat_tables([QUARANTINE_SCHEMA.empty_table(), *tables])
    if not len(table):
        return ""
    _write(table, folder, name)
    [(reason, _)] = Counter(table["reason"].to_pylist()).most_common(1)
    rows = table.filter(pc.equal(table["reason"], reason))
    words = in_words(rows.slice(0, 1).to_pylist()[0])
    if reason == ABSURD:
        words += f"; {advice(rows['timestamp'].unique().to_pylist()[:_TIMES_SHOWN])}"
    return words


def in_words(row: Mapping[str, Any]) -> str:
    """Return a quarantined row in words."""
    place = f"line {row['line']}" if row["line"] is not None else f"row {row['row']}"
    what = {name: value for name, value in row.items() if name in TEXT_VALUES and value is not None}
    return f"{row['file']} {place}: {row['reason']} {what or repr((row['text'] or '')[:200])}"


def _write(table: pa.Table, folder: str, name: str) -> None:
    filesystem, root = open_filesystem(folder)
    pq.write_table(table, f"{root}/{name}", filesystem=filesystem, **_WRITE)
