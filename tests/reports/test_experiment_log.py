"""The tables of impressions and events: read in parts, from folders and object stores."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.errors import DataError
from raysys.reports import experiment_log
from raysys.reports.experiment_log import EVENT_SCHEMA, IMPRESSION_SCHEMA, read
from raysys.simulate.experiment import ExperimentSpec, experiment_tables
from raysys.simulate.world import DAY
from raysys.store.storage import Storage

SPEC = ExperimentSpec({"a": (0.5, 0.0), "b": (0.5, 0.5)}, n_users=300)


def write(storage, folder, name, table):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_atomic(f"{folder}/{name}", sink.getvalue().to_pybytes())


def write_tables(storage, spec=SPEC, *, name="home"):
    events, impressions = experiment_tables(spec, name=name)
    write(storage, "events", f"{name}.parquet", events)
    write(storage, "impressions", f"{name}.parquet", impressions)
    return events, impressions


def read_home(storage, **settings):
    return read(storage, "home", **({"window_s": DAY, "horizon_s": DAY} | settings))


def sums(logged):
    users = logged.users
    return users.user_ids.to_pylist(), users.conversions.tolist(), users.impressions.tolist()


def test_files_parts_and_repeats_make_no_difference(tmp_path, monkeypatch):
    events, impressions = write_tables(Storage(str(tmp_path / "whole")))
    whole = read_home(Storage(str(tmp_path / "whole")))
    assert sum(whole.users.conversions) > 20
    assert whole.until == max(
        *events["timestamp"].to_pylist(), *impressions["timestamp"].to_pylist()
    )
    monkeypatch.setattr(experiment_log, "_PART_ROWS", 100)
    other = Storage(str(tmp_path / "parts"))
    for number, start in enumerate(range(0, len(impressions), 250)):  # the last files come first
        write(other, "impressions/day=1", f"{9 - number}.parquet", impressions.slice(start, 300))
    write(other, "impressions", "x.parquet", experiment_tables(SPEC, name="other")[1])
    write(other, "events", "a.parquet", events.take(list(range(len(events)))[::-1]))
    write(other, "events", "b.parquet", events.slice(5, 40))
    assert sums(read_home(other)) == sums(whole)


def test_object_stores_hold_tables(s3_bucket, tmp_path):
    storages = [Storage(f"{s3_bucket}/experiments"), Storage(str(tmp_path))]
    for storage in storages:
        write_tables(storage)
    remote, local = map(read_home, storages)
    assert sums(remote) == sums(local)


def test_conversions_are_those_asked_for(tmp_path):
    storage = Storage(str(tmp_path))
    events, _ = write_tables(storage)
    n = len(events)
    kinds = pa.array(["view", "purchase", None] * n)[:n]
    ratings = pa.array([1.0, 5.0, None] * n)[:n]
    events = events.set_column(3, "event", kinds).set_column(4, "rating", ratings)
    write(storage, "events", "home.parquet", events)
    assert read_home(storage).events == n
    assert read_home(storage, events=["purchase"]).events == len(range(1, n, 3))
    assert read_home(storage, min_rating=4.0).events == n - len(range(0, n, 3))


def test_impressions_without_a_user_are_counted(tmp_path):
    storage = Storage(str(tmp_path))
    _, impressions = write_tables(storage)
    users = impressions["user_id"].to_pylist()
    nobody = pa.array([None, *users[1:]], pa.string())
    write(storage, "impressions", "home.parquet", impressions.set_column(3, "user_id", nobody))
    assert read_home(storage).anonymous == 1


def test_what_cannot_be_read_is_named(tmp_path):
    storage = Storage(str(tmp_path))
    with pytest.raises(DataError, match="those of no experiment"):
        read_home(storage)
    _, impressions = write_tables(storage, name="other")
    with pytest.raises(DataError, match=r"name='home' has no impressions.*those of other;"):
        read_home(storage)
    (tmp_path / "events" / "bad.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(DataError, match=r"events/bad\.parquet cannot be read"):
        read_home(storage)
    (tmp_path / "events" / "bad.parquet").unlink()
    write(storage, "impressions", "bad.parquet", impressions.drop_columns(["weight", "arm"]))
    with pytest.raises(DataError, match=r"impressions/bad\.parquet has no column arm, weight"):
        read_home(storage)
    times = pa.array(["soon"] * len(impressions))
    write(storage, "impressions", "bad.parquet", impressions.set_column(4, "timestamp", times))
    with pytest.raises(DataError, match=r"bad\.parquet cannot be read"):
        read_home(storage)


def test_the_simulation_writes_what_is_read():
    events, impressions = experiment_tables(SPEC)
    assert events.schema.names == EVENT_SCHEMA.names
    assert impressions.schema.names == IMPRESSION_SCHEMA.names
    assert impressions.cast(IMPRESSION_SCHEMA).num_rows == len(impressions)
