"""look: what prepare would read of a log, before anything is built.

    raysys look source=LOG [items=CATALOGUE] [exact=true]

Settings that are not given are proposed by what the files look like; the last line is the `prepare`
command with all of them.
"""

from __future__ import annotations

import dataclasses
import datetime
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysys.config import local
from raysys.errors import DataError
from raysys.log.accounting import unfit_defaults
from raysys.log.formats.delimited import DelimitedReader
from raysys.log.readers import file_columns
from raysys.log.sniff import propose, typed_value, words
from raysys.log.sources import list_files
from raysys.log.timestamps import ABSURD, guess_forms
from raysys.prepare.config import PrepareConfig
from raysys.prepare.item_file import list_item_files, open_items, read_items
from raysys.prepare.opened_log import Log, open_log, read_plan
from raysys.prepare.tasks import in_words, odd_values
from raysys.reports.tables import aligned

_SAMPLE_ROWS = 200_000
_SAMPLE_PIECES = 8  # so that not only the first of many files is seen
_TIMES_SHOWN = 1000  # to the guess of their form
_YEAR_S = 365 * 24 * 3600
_SAMPLE_BYTES = 1 << 28  # of a catalogue
_SHOWN_ROWS = 5
_WIDTH = 40


@dataclasses.dataclass
class LookConfig(PrepareConfig):
    """Settings of look: those of prepare, `run` not needed.

    Attributes:
        exact: read everything, not a sample.
    """

    exact: bool = local(False)


@dataclasses.dataclass
class _Seen:
    """What the rows read amount to.

    Attributes:
        rows: good rows, as text columns `user_id item_id rating timestamp event`.
        n_read: rows read, bad ones too.
        n_pieces: pieces begun.
        whole: everything was read.
        reasons: quarantined rows per reason; examples: one of each in words.
        units: rows per form of time.
        odd: values per column that are neither text nor numbers.
        times: some values that are no times.
    """

    rows: list[pa.Table] = dataclasses.field(default_factory=list)
    n_read: int = 0
    n_pieces: int = 0
    whole: bool = True
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)
    examples: dict[str, str] = dataclasses.field(default_factory=dict)
    units: Counter[str] = dataclasses.field(default_factory=Counter)
    odd: Counter[str] = dataclasses.field(default_factory=Counter)
    times: Counter[str] = dataclasses.field(default_factory=Counter)


def look(cfg: LookConfig) -> str:
    """Return in words what prepare would read.

    Raises:
        DataError: the source cannot be read. ConfigError: a column is not there.
    """
    cfg, opened = _open(cfg)
    seen = _read(cfg, opened)
    unfit = unfit_defaults(opened.mapped, seen.odd, seen.n_read, share=cfg.max_bad_share)
    if unfit:
        opened = opened.without(unfit)
        seen = _read(cfg, opened)
    forms = guess_forms(list(seen.times)) if cfg.format.time is None else []
    if forms and seen.reasons[ABSURD] > cfg.max_bad_share * seen.n_read:
        cfg = dataclasses.replace(cfg, format=dataclasses.replace(cfg.format, time=forms[0]))
        seen = _read(cfg, opened)
    if not seen.n_read:
        raise DataError(f"{opened.files[0].uri} holds no rows")
    table = pa.concat_tables(seen.rows).unify_dictionaries()
    timed = not len(table) or table["timestamp"].null_count < len(table)
    cfg = dataclasses.replace(cfg, split=cfg.split if timed or cfg.folds is not None else "users")
    catalogue, cfg = _catalogue(cfg, cfg.items, table) if cfg.items else ([], cfg)
    lines = [*_source_lines(cfg, opened, seen), "", *_column_lines(opened), ""]
    lines += [*_row_lines(opened), "", *_count_lines(cfg, table, seen), *catalogue, ""]
    if len(forms) > 1 and cfg.format.time == forms[0]:
        lines.insert(-1, f"WARNING  the times also read as format.time={shlex.quote(forms[1])}")
    return "\n".join([*lines, _command(cfg)]) + "\n"


def _open(cfg: LookConfig) -> tuple[LookConfig, Log]:
    """Return the settings with those proposed, and the log; times are not asked for yet."""
    first = list_files((cfg.folds or cfg.source) or "", cfg.format.kind, any_ending=True)[0]
    settings, columns = propose(first, cfg.format, cfg.columns)
    cfg = dataclasses.replace(cfg, format=settings, columns=columns)
    timeless = cfg if cfg.folds is not None else dataclasses.replace(cfg, split="users")
    return cfg, open_log(timeless)


def _read(cfg: LookConfig, opened: Log) -> _Seen:
    seen = _Seen()
    plan = read_plan(cfg, opened)
    for piece in opened.source.pieces():
        if not cfg.exact and seen.n_read >= _SAMPLE_ROWS and seen.n_pieces >= _SAMPLE_PIECES:
            seen.whole = False
            break
        seen.n_pieces += 1
        n_before = seen.n_read
        for chunk, done in plan.cleaned(piece):
            if not cfg.exact and seen.n_read - n_before >= _SAMPLE_ROWS:
                seen.whole = False
                break
            seen.rows.append(done.rows)
            seen.n_read += len(chunk.table) + len(chunk.malformed)
            seen.odd.update(odd_values(chunk, plan.columns))
            seen.units.update(done.units)
            reasons = Counter(done.bad["reason"].to_pylist())
            seen.reasons.update(reasons)
            for reason in reasons.keys() - seen.examples.keys():
                row = done.bad.filter(pc.equal(done.bad["reason"], reason)).slice(0, 1)
                seen.examples[reason] = in_words(row.to_pylist()[0])
            if len(seen.times) < _TIMES_SHOWN and reasons[ABSURD]:
                absurd = done.bad.filter(pc.equal(done.bad["reason"], ABSURD))
                seen.times.update(
                    absurd["timestamp"].drop_null().unique().to_pylist()[:_TIMES_SHOWN]
                )
    return seen


def _source_lines(cfg: LookConfig, opened: Log, seen: _Seen) -> Iterator[str]:
    files = opened.files
    size = sum(file.size_bytes for file in files)
    form = files[0].format
    reader = opened.source.reader
    if isinstance(reader, DelimitedReader):
        names = "header" if reader.header else "no header"
        marks = [f"separator {reader.separator!r}", f"quote {reader.quote or 'none'}", names]
        marks += [f"escape {reader.escape}"] if reader.escape else []
        form = ", ".join([form, *marks, reader.encoding or "UTF-8"])
    many = "1 file" if len(files) == 1 else f"{len(files):,} files"
    yield f"source   {cfg.folds or cfg.source} ({many}, {size:,} bytes): {form}"
    what = f"{seen.n_read:,} rows"
    if seen.whole:
        yield f"read     all {what}"
    else:
        n_pieces = len(opened.source.pieces())
        parts = f" of {seen.n_pieces} of {n_pieces:,} parts" if n_pieces > 1 else ""
        yield f"read     the first {what}{parts}; exact=true reads all"


def _column_lines(opened: Log) -> list[str]:
    """Return one line per column: its name, what it is read as, its type, examples."""
    source, mapped = opened.source, opened.mapped
    roles = {column: name for name, column in mapped.columns.items()}
    rows = [{"column": "column", "read as": "read as", "type": "type", "examples": "examples"}]
    head = source.reader.first_rows(source.files[0], 100)
    kinds = {
        column.name: "text" if column.kind == pa.string() else str(column.kind or "as written")
        for file in reversed(source.files)
        for column in file_columns(source.reader, file)
    }
    for file in source.files:
        kinds |= {name: "folder" for name, _ in file.constants if name not in kinds}
    for name, kind in kinds.items():
        once = head.column_names.count(name) == 1
        values = head[name].to_pylist() if once else []
        values += [value for file in source.files for key, value in file.constants if key == name]
        shown = list(dict.fromkeys(_short(value) for value in values if value is not None))[:3]
        role = roles.get(name) or f"- ({mapped.left_out.get(name, 'not asked for')})"
        cells = {"column": name, "read as": role, "type": kind, "examples": " | ".join(shown)}
        rows.append(cells)
    return _aligned(rows)


def _row_lines(opened: Log) -> list[str]:
    """Return the first rows as prepare reads them."""
    columns = opened.mapped.columns
    source = opened.source
    head = source.reader.first_rows(source.files[0], _SHOWN_ROWS)
    rows = [{name: name for name in columns}]
    for number in range(len(head)):
        values = {
            name: head[column][number].as_py() if column in head.column_names else None
            for name, column in columns.items()
        }
        rows.append({name: _short(value) for name, value in values.items()})
    return ["first rows", *_aligned(rows)]


def _count_lines(cfg: LookConfig, table: pa.Table, seen: _Seen) -> Iterator[str]:
    n_bad = sum(seen.reasons.values())
    yield f"rows     {len(table):,} good, {n_bad:,} quarantined, {seen.n_read:,} read"
    for name in ("user", "item"):
        yield f"{name}s    {len(table[f'{name}_id'].unique()):,}"
    times = pc.min_max(table["timestamp"]).as_py()
    if times["min"] is None:
        yield "times    none"
    else:
        units = ", ".join(f"{unit} {count:,}" for unit, count in seen.units.items())
        yield f"times    {_moment(times['min'])} to {_moment(times['max'])} UTC (form: {units})"
        if times["max"] < _YEAR_S:
            yield "WARNING  all times lie in 1970: they may be dates, or counts of days"
    yield f"ratings  {_counts(table['rating'])}"
    yield f"events   {_counts(table['event'])}"
    for reason, count in seen.reasons.most_common():
        yield f"quarantined {count:,}: {reason}, e.g. {seen.examples[reason]}"
    if n_bad > cfg.max_bad_share * seen.n_read:
        yield f"prepare would stop: more than max_bad_share={cfg.max_bad_share} of the rows are bad"


def _catalogue(cfg: LookConfig, items: str, table: pa.Table) -> tuple[list[str], LookConfig]:
    """Return what the item file holds, and the settings with those proposed for it."""
    first = list_item_files(items, cfg.items_format)[0]
    settings, columns = propose(first, cfg.items_format, cfg.items_columns)
    cfg = dataclasses.replace(cfg, items_format=settings, items_columns=columns)
    source = open_items(items, settings, columns)
    size = sum(file.size_bytes for file in source.files)
    if size > _SAMPLE_BYTES and not cfg.exact:
        return [f"catalogue {size:,} bytes, not read: exact=true reads it"], cfg
    catalogue = read_items(
        source,
        settings,
        columns,
        log_column=cfg.columns.item,
        max_bad_share=cfg.max_bad_share,
    )
    ids, known = pc.unique(_plain(table["item_id"])), catalogue["item_id"].combine_chunks()
    described = int(pc.sum(pc.is_in(ids, value_set=known)).as_py() or 0)
    attributes = ", ".join(catalogue.column_names[1:]) or "none"
    lines = [
        f"catalogue {len(catalogue):,} items with {attributes}; "
        f"it describes {described:,} of the {len(ids):,} items above"
    ]
    if 2 * described < len(ids):
        theirs = ", ".join(map(repr, ids[:3].to_pylist()))
        lines.append(f"WARNING  ids of the log: {theirs}; of the catalogue: ")
        lines[-1] += ", ".join(map(repr, known[:3].to_pylist()))
    return lines, cfg


def _command(cfg: LookConfig) -> str:
    """Return the prepare command that reads the log as it was read here."""
    default = PrepareConfig()
    typed = ["run=RUN"]
    for field in dataclasses.fields(PrepareConfig):
        before, after = getattr(default, field.name), getattr(cfg, field.name)
        if field.name in ("run", "ray", "force") or before == after:
            continue
        if dataclasses.is_dataclass(after):
            typed += words(field.name, before, after)
        else:
            typed += [f"{field.name}={typed_value(after)}"]
    return " ".join(["raysys prepare", *(shlex.quote(word) for word in typed)])


def _plain(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _counts(column: pa.ChunkedArray) -> str:
    counts: Mapping[Any, int] = {
        pair["values"]: pair["counts"] for pair in pc.value_counts(_plain(column)).to_pylist()
    }
    present = {value: count for value, count in counts.items() if value is not None}
    if not present:
        return "none"
    if len(present) > 12:
        return f"{len(present):,} values"
    try:
        order: Iterable[Any] = sorted(present)
    except TypeError:
        order = present
    shown = ", ".join(f"{_short(v)}: {present[v]:,}" for v in order)
    return shown + (f", none: {counts[None]:,}" if None in counts else "")


def _moment(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _short(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)
    text = "" if value is None else text.replace("\n", "\\n").replace("\t", "\\t")
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _aligned(rows: Sequence[Mapping[str, str]]) -> list[str]:
    return aligned([[row[name] for name in rows[0]] for row in rows], left=range(len(rows[0])))
