"""The tables that a service leaves in a run: impressions of experiments, and events.

<run>/impressions/*.parquet   what users were shown, by which arm
<run>/events/*.parquet        what users did

Files are read a part at a time: of impressions, the lists of items are gone when their part is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.errors import DataError
from raysys.evaluation.attribution import Attribution, ExperimentUsers
from raysys.events import records
from raysys.events.records import RECEIVED
from raysys.store.storage import Storage

EVENT_SCHEMA, IMPRESSION_SCHEMA = (
    pa.schema([field for field in table.schema if field.name != RECEIVED])
    for table in (records.EVENTS, records.IMPRESSIONS)
)
EVENTS, IMPRESSIONS = records.EVENTS.name, records.IMPRESSIONS.name
_PART_ROWS = 1 << 17
_CREDITED = ["event_id", "user_id", "item_id", "timestamp"]
_NEEDED = ("impression_id", "arm", "user_id", "timestamp", "weight")


@dataclasses.dataclass(frozen=True)
class Logged:
    """What the tables say of one experiment.

    Attributes:
        users: who was in it.
        until: time of the last impression or event of any experiment, UTC seconds.
        events: rows that count as conversions, credited or not.
        anonymous: impressions without a user, arm or time, left out.
        has_events: there is a table of events.
    """

    users: ExperimentUsers
    until: int
    events: int
    anonymous: int
    has_events: bool


def read(
    storage: Storage,
    experiment: str,
    *,
    events: Sequence[str] = (),
    min_rating: float | None = None,
    window_s: int,
    horizon_s: int,
) -> Logged:
    """Read what the tables of a run say of one experiment.

    Args:
        storage: of the run.
        experiment: its name.
        events: kinds that count as conversions; none: all do.
        min_rating: rated events below it do not count.
        window_s: as `Attribution` takes it.
        horizon_s: as `Attribution` takes it.

    Raises:
        DataError: a table cannot be read, or the experiment has no impressions; the message names
            those that have.
    """
    folders = {name: _files(storage, name) for name in (EVENTS, IMPRESSIONS)}
    until, counted = 0, [EVENT_SCHEMA.empty_table().select(_CREDITED)]
    kinds: set[str | None] = set()
    for part in _parts(storage, folders[EVENTS], EVENT_SCHEMA):
        until = max(until, pc.max(part["timestamp"]).as_py() or 0)
        kinds.update(pc.unique(part["event"]).to_pylist())
        counted.append(_conversions(part, events, min_rating).select(_CREDITED))
    lacking = [kind for kind in events if kind not in kinds]
    if lacking:
        names = ", ".join(sorted(kind for kind in kinds if kind is not None)) or "none"
        raise DataError(f"events={lacking} are no kinds of events of this run: it has {names}")
    conversions = pa.concat_tables(counted)
    attribution = Attribution(conversions, window_s=window_s, horizon_s=horizon_s)
    known: dict[str, None] = {}
    anonymous, found = 0, 0
    for part in _parts(storage, folders[IMPRESSIONS], IMPRESSION_SCHEMA):
        until = max(until, pc.max(part["timestamp"]).as_py() or 0)
        known |= dict.fromkeys(pc.unique(part["experiment"]).to_pylist())
        own = part.filter(pc.equal(part["experiment"], experiment))
        whole = own.filter(_all_valid(own, _NEEDED))
        anonymous += len(own) - len(whole)
        found += len(whole)
        attribution.add(whole)
    if not found:
        names = ", ".join(sorted(name for name in known if name)) or "no experiment"
        raise DataError(
            f"name={experiment!r} has no impressions of users in {storage.url(IMPRESSIONS)}, which "
            f"has those of {names}; what is in the journal is there after `raysys events fold`"
        )
    has_events = bool(folders[EVENTS])
    return Logged(attribution.users(), until, len(conversions), anonymous, has_events)


def _files(storage: Storage, folder: str) -> list[str]:
    return [f"{folder}/{name}" for name in storage.files(folder) if name.endswith(".parquet")]


def _parts(storage: Storage, files: Sequence[str], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of files as a schema has them.

    Raises:
        DataError: a file cannot be read, or lacks a column.
    """
    for name in files:
        where = storage.url(name)
        try:
            with storage.filesystem.open_input_file(f"{storage.root}/{name}") as stream:
                file = pq.ParquetFile(stream)
                missing = [n for n in schema.names if n not in file.schema_arrow.names]
                if missing:
                    raise DataError(f"{where} has no column {', '.join(missing)}")
                for batch in file.iter_batches(_PART_ROWS, columns=schema.names):
                    yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{where} cannot be read: {error}") from error


def _conversions(part: pa.Table, kinds: Sequence[str], min_rating: float | None) -> pa.Table:
    if kinds:
        part = part.filter(pc.is_in(part["event"], value_set=pa.array(kinds, pa.string())))
    if min_rating is not None:
        part = part.filter(pc.fill_null(pc.greater_equal(part["rating"], min_rating), True))
    return part


def _all_valid(table: pa.Table, names: Sequence[str]) -> pa.ChunkedArray:
    valid = pc.is_valid(table[names[0]])
    for name in names[1:]:
        valid = pc.and_(valid, pc.is_valid(table[name]))
    return valid
