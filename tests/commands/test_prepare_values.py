"""What values of a log mean, from files to builds: times, ids, ratings that never differ."""

import datetime
import decimal
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys import cli
from raysys.commands.prepare import PrepareConfig, prepare
from raysys.config import load
from raysys.data.profiles import Profiles
from raysys.errors import DataError
from raysys.scoring.rankings import RANKINGS, Needs
from raysys.search.query import ProfileEntry, RecommendQuery
from raysys.search.search import Search
from raysys.store.builds import Workspace
from tests.support.logs import prepare_here

START = 1_500_000_000
N_USERS, N_ITEMS, PER_USER = 120, 40, 12


@pytest.fixture
def here(monkeypatch):
    prepare_here(monkeypatch)


def planted():
    """Users and items of even and odd numbers: users keep to items of their own parity."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(N_USERS):
        items = rng.choice(np.arange(user % 2, N_ITEMS, 2), PER_USER, replace=False)
        rows += [{"user_id": user, "item_id": int(item)} for item in items]
    rng.shuffle(rows)
    return [row | {"timestamp": START + n * 3600} for n, row in enumerate(rows)]


def write(path, rows, **more):
    table = pa.Table.from_pylist(rows)
    for name, values in more.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)
    return f"source={path}"


def prepared(folder, *words):
    cfg = load(PrepareConfig, [f"run={folder / 'run'}", *words])
    prepare(cfg)
    workspace = Workspace(cfg.run)
    return workspace.current("interactions"), Profiles.open(workspace.current("profiles"))


def moment(row):
    return datetime.datetime.fromtimestamp(row["timestamp"], datetime.UTC)


def test_times_with_a_zone_behind_are_read_and_others_are_advised(tmp_path, here):
    rows = planted()
    source = tmp_path / "log.csv"
    lines = [f"{r['user_id']},{r['item_id']},{moment(r):%Y-%m-%d %H:%M:%S} UTC\n" for r in rows]
    source.write_text("user_id,item_id,timestamp\n" + "".join(lines) + "1,1,2017-13-01 UTC\n")
    interactions, _ = prepared(tmp_path, f"source={source}")
    facts = interactions.record()
    assert facts["quarantined"] == {"absurd timestamp": 1}
    assert facts["rows"] == len(rows)
    assert facts["time_range"] == [START, START + (len(rows) - 1) * 3600]

    lines = [f"{r['user_id']},{r['item_id']},{moment(r):%m/%d/%Y %I:%M:%S %p}\n" for r in rows]
    source.write_text("user_id,item_id,timestamp\n" + "".join(lines))
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, f"source={source}")
    message = str(caught.value)
    assert f"{len(rows)} absurd timestamp" in message
    assert "ISO 8601" in message
    assert message.endswith('here format.time="%m/%d/%Y %I:%M:%S %p"')


def test_ids_in_decimals_and_floats(tmp_path, here):
    rows = planted()
    users = [float(row["user_id"]) for row in rows]
    users[3], users[5], users[7] = float("inf"), 2.0**60, 0.5
    items = [decimal.Decimal(row["item_id"]) for row in rows]
    table = pa.table(
        {
            "user_id": users,
            "item_id": pa.array(items, pa.decimal128(20, 2)),
            "timestamp": [row["timestamp"] for row in rows],
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    interactions, profiles = prepared(
        tmp_path, f"source={tmp_path / 'log.parquet'}", "max_bad_share=0.05"
    )
    assert interactions.record()["quarantined"] == {
        "user id beyond 2^53 as a float": 1,
        "user id is not a whole number": 2,
    }
    assert set(profiles.user_ids.to_pylist()) == {str(user) for user in range(N_USERS)}
    assert set(profiles.items["item_id"].to_pylist()) == {str(item) for item in range(N_ITEMS)}


def test_where_ratings_never_differ_events_are_the_levels(tmp_path, caplog, here):
    rows = planted()
    both = [row | {"event": "view"} for row in rows]
    both += [row | {"event": "buy", "timestamp": row["timestamp"] + 60} for row in rows[::2]]
    source = write(tmp_path / "log.parquet", both, rating=[1.0] * len(both))
    interactions, profiles = prepared(tmp_path, source)
    assert interactions.record()["rows"] == len(both)  # a view and a purchase of one pair
    assert profiles.levels.names == ("buy", "view")
    assert np.bincount(profiles.cells().level).tolist() == [len(rows[::2]), len(rows)]
    assert "ratings of the fit window are all 1" in caplog.text
    # A day whose ratings happen to be the same goes on top of a rated log.
    rated = write(tmp_path / "rated.parquet", both, rating=[1.0, 2.0] * (len(both) // 2))
    folder = tmp_path / "rated"
    assert prepared(folder, rated)[1].levels.names == ("1", "2")
    day = [row | {"timestamp": row["timestamp"] + 10**7} for row in both]
    more = write(tmp_path / "day.parquet", day, rating=[2.0] * len(day))
    appended, _ = prepared(folder, more, "mode=append")
    assert appended.record()["has_ratings"] is True


@pytest.mark.ray
@pytest.mark.slow
def test_one_rating_throughout_is_consumption_from_log_to_answers(tmp_path, capfd, ray_cluster):
    rows = planted()
    source = write(tmp_path / "log.parquet", rows, rating=[4.5] * len(rows))
    run = tmp_path / "run"
    small = ("train.optim.epochs=2", "train.autoencoder.latent=16", "evaluate.replicates=50")
    status = cli.main(["pipeline", f"run={run}", source, *small])
    out, err = capfd.readouterr()
    assert status == 0, err[-3000:]
    assert err.count("ratings of the fit window are all 4.5: they make no scale") == 1
    assert "rmse" not in json.loads(out)["metrics"]
    search = Search.open(Workspace(str(run)))
    assert {RANKINGS[name].needs for name in search.rankings} == {Needs.NOTHING}
    for user in range(6):
        answer = search.recommend(RecommendQuery(user_id=str(user), k=5))
        assert {int(hit.item_id) % 2 for hit in answer.items} == {user % 2}
        assert {hit.expected_rating for hit in answer.items} == {None}
    [hit] = search.recommend(
        RecommendQuery(
            profile=[ProfileEntry(item_id="1", rating=4.5), ProfileEntry(item_id="3")], k=1
        )
    ).items
    assert int(hit.item_id) % 2 == 1
