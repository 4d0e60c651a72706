"""Folding and erasing events from the command line, and their way into the log."""

import pyarrow.parquet as pq
import pytest

from raysys.commands.events import EraseConfig, FoldConfig, erase, fold
from raysys.commands.prepare import prepare
from raysys.config import load
from raysys.errors import BuildError
from raysys.events import fold as folding
from raysys.events.feed import Feed, now_ms
from raysys.events.records import Event
from raysys.prepare.config import PrepareConfig
from raysys.store.storage import Storage
from tests.support.logs import prepare_here

LOG = "user_id,item_id,rating,timestamp\n" + "".join(
    f"u{n % 5},i{n % 7},{n % 5 + 1},{1_700_000_000 + n}\n" for n in range(60)
)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(folding, "SETTLED_S", 0.0)


def taken(run, *events):
    feed = Feed(Storage(run))
    feed.accept([Event(*event, 1_790_000_000, now_ms()) for event in events]).result(timeout=10)
    feed.stop()


def test_a_log_goes_on_with_what_a_service_took(tmp_path, monkeypatch):
    prepare_here(monkeypatch)
    run, source = str(tmp_path / "run"), tmp_path / "log.csv"
    source.write_text(LOG)
    prepare(load(PrepareConfig, {"run": run, "source": str(source)}))
    taken(
        run,
        ("a", "u1", "i1", None, 5.0),
        ("b", "new", "i2", "view", None),
        ("a", "u1", "i1", None, 5.0),
    )
    done = fold(FoldConfig(run=run)).extra["events"]
    assert done == {"added": 2, "repeated": 1, "erased": 0, "damaged": 0}
    settings = {"run": run, "source": f"{run}/events", "mode": "append"}
    facts = prepare(load(PrepareConfig, settings)).extra["interactions"]
    assert (facts["n_users"], facts["rows_in"], facts["has_ratings"]) == (6, 62, True)
    taken(run, ("c", "new", "i3", "view", None))  # a week of views alone
    fold(FoldConfig(run=run))
    facts = prepare(load(PrepareConfig, settings)).extra["interactions"]
    assert (facts["rows"], facts["n_users"]) == (37, 6)  # 35 pairs, and two of the new user


def test_an_erased_user_is_gone_from_the_files(tmp_path):
    run = str(tmp_path / "run")
    taken(run, ("a", "u1", "i1", None, 5.0), ("b", "u2", "i1", None, 5.0))
    fold(FoldConfig(run=run))
    taken(run, ("c", "u1", "i2", None, 5.0))
    done = erase(EraseConfig(run=run, user_id="u1")).extra["events"]
    assert done == {"added": 0, "repeated": 0, "erased": 2, "damaged": 0}
    [file] = (tmp_path / "run" / "events").iterdir()
    assert pq.read_table(file)["user_id"].to_pylist() == ["u2"]


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BuildError, match="nowhere"):
        fold(FoldConfig(run=str(tmp_path / "nowhere")))


def test_a_disk_that_is_full_is_one_line(tmp_path, monkeypatch):
    run = str(tmp_path / "run")
    taken(run, ("a", "u1", "i1", None, 5.0))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Storage, "write_atomic", full)
    for command, cfg in ((fold, FoldConfig(run=run)), (erase, EraseConfig(run=run, user_id="u"))):
        with pytest.raises(BuildError, match=r"run=.* cannot be written: .*No space left"):
            command(cfg)
