from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from raysys.commands.prepare import PrepareConfig, prepare
from raysys.config import load
from raysys.data.profiles import Profiles
from raysys.errors import BuildError, ConfigError, DataError
from raysys.store.builds import Workspace
from tests.support.logs import prepare_here

DAY = 86_400
START = 1_700_000_000
CUTS = [f"val_cut={START + 20 * DAY}", f"test_cut={START + 28 * DAY}"]


@pytest.fixture
def here(monkeypatch):
    prepare_here(monkeypatch)


def day_logs(n_days=3, rows=900, seed=0):
    """Return logs of successive months in which new items appear; some rows repeat or are bad."""
    logs = []
    for day in range(n_days):
        rng = np.random.default_rng([seed, day])
        users = [f"user {n}" for n in rng.integers(10 * day, 60 + 10 * day, rows)]
        users[3] = None
        logs.append(
            pa.table(
                {
                    "user_id": users,
                    "item_id": [f"i{n}" for n in rng.integers(30 + 15 * day, size=rows)],
                    "rating": rng.integers(1, 6, rows).astype(np.float32),
                    "timestamp": START + day * 33 * DAY + rng.integers(0, 33 * DAY, rows),
                }
            )
        )
    return logs


def run(folder, log, *settings, name="run"):
    path = folder / f"log-{name}.parquet"
    pq.write_table(log, path)
    cfg = load(PrepareConfig, [f"run={folder / name}", f"source={path}", *settings])
    result = prepare(cfg)
    ws = Workspace(cfg.run)
    return ws.current("interactions"), ws.current("profiles"), result


def named_cells(build):
    """Return every cell under the names of its user, item and level."""
    profiles = Profiles.open(build)
    cells = profiles.cells()
    users, items = profiles.user_ids.to_pylist(), profiles.items["item_id"].to_pylist()
    names = profiles.levels.names
    columns = (cells.rows, cells.item_num, cells.level, cells.timestamp, cells.window)
    return sorted((users[u], items[i], names[r], t, w) for u, i, r, t, w in zip(*columns))


@pytest.mark.parametrize(
    "settings",
    [
        CUTS,
        ["val_cut=0.7", "test_cut=0.85", "min_item_rows=3", "min_user_rows=2", "core_rounds=3"],
        ["split=users", "dedupe=last"],
        ["split=ratings", "dedupe=count"],
    ],
)
def test_an_append_equals_a_full_rebuild_up_to_numbering(tmp_path, settings, here):
    logs = day_logs()
    numbers = {}
    for day, log in enumerate(logs):
        mode = ["mode=append"] if day else []
        appended, profiles, _ = run(tmp_path, log, *settings, *mode)
        ids = Profiles.open(profiles).items["item_id"].to_pylist()
        now = {name: number for number, name in enumerate(ids)}
        assert {name: now[name] for name in numbers} == numbers
        numbers = now
    full, rebuilt, _ = run(tmp_path, pa.concat_tables(logs), *settings, name="full")
    parts = appended.files(".parquet", prefix="part-")
    assert {n: appended.manifest.files[n] for n in parts} == {
        n: full.manifest.files[n] for n in full.files(".parquet", prefix="part-")
    }
    counts = ("rows_in", "rows", "duplicates", "quarantined", "filtered", "n_users", "time_range")
    assert {c: appended.record()[c] for c in counts} == {c: full.record()[c] for c in counts}
    assert full.record()["quarantined"] == {"missing user": 3}
    assert len(appended.files(prefix="quarantine-")) == 3
    assert named_cells(profiles) == named_cells(rebuilt)
    for fact in ("cutoffs", "levels", "n_cells", "filtered", "n_users"):
        assert profiles.record()[fact] == rebuilt.record()[fact]
    if settings is CUTS:  # no late rows and nothing dropped: also the same catalogues
        assert profiles.record()["catalogue"] == rebuilt.record()["catalogue"]


def test_the_same_append_again_is_reused_and_old_logs_are_not_read(tmp_path, here):
    first, second = day_logs(2)
    run(tmp_path, first, "split=ratings")
    (tmp_path / "log-run.parquet").unlink()
    one = run(tmp_path, second, "split=ratings", "mode=append")[2].build_ids
    assert run(tmp_path, second, "split=ratings", "mode=append")[2].build_ids == one
    # A run that ended between the two builds goes on with the second.
    (tmp_path / "run" / "profiles" / one["profiles"] / "manifest.json").unlink()
    ids = Workspace(str(tmp_path / "run")).current("interactions").build_id
    assert ids == one["interactions"]


def test_a_late_row_gives_its_new_item_a_late_number(tmp_path, here):
    first, second = day_logs(2)
    _, before, _ = run(tmp_path, first, "val_cut=0.5", "test_cut=0.8")
    late = pa.table(
        {
            "user_id": ["user 1"],
            "item_id": ["late"],
            "rating": pa.array([3.0], pa.float32()),
            "timestamp": [START + 1],
        }
    )
    log = pa.concat_tables([second, late])
    _, profiles, _ = run(tmp_path, log, "val_cut=0.5", "test_cut=0.8", "mode=append")
    items = Profiles.open(profiles).items
    number = items["item_id"].to_pylist().index("late")
    assert before.record()["n_items"] <= number < profiles.record()["catalogue"]["val"]
    fitted = items.filter(pc.greater(items["n_fit"], 0))["item_num"].to_pylist()
    assert max(fitted) < profiles.record()["catalogue"]["val"]


def test_what_does_not_fit_is_one_line(tmp_path, here):
    first, second = day_logs(2)
    with pytest.raises(BuildError, match="holds no interactions build yet"):
        run(tmp_path, first, "mode=append", name="none")
    run(tmp_path, first, "split=ratings")
    with pytest.raises(ConfigError, match="mode=append with dedupe='last'"):
        run(tmp_path, second, "split=ratings", "mode=append", "dedupe=last")
    unrated = second.drop_columns(["rating"])
    with pytest.raises(DataError, match="new log has no ratings, the earlier ones have some"):
        run(tmp_path, unrated, "split=ratings", "mode=append")


@pytest.mark.ray
def test_appends_at_once_lose_nothing(tmp_path, ray_cluster):
    logs = day_logs()
    run(tmp_path, logs[0], *CUTS)
    settings = []
    for number, log in enumerate(logs[1:], start=1):
        path = tmp_path / f"more-{number}.parquet"
        pq.write_table(log, path)
        settings.append([f"run={tmp_path / 'run'}", f"source={path}", "mode=append", *CUTS])
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda words: prepare(load(PrepareConfig, words)), settings))
    whole = run(tmp_path, pa.concat_tables(logs), *CUTS, name="whole")[1]
    assert named_cells(Workspace(str(tmp_path / "run")).current("profiles")) == named_cells(whole)
