import csv
import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.commands.prepare import PrepareConfig, bucket_ranges, prepare
from raysys.config import RayConfig, load
from raysys.data.profiles import Profiles
from raysys.data.schema import Window
from raysys.errors import ConfigError, DataError, RaysysError
from raysys.store.builds import Workspace
from raysys.store.storage import open_filesystem
from tests.support.logs import prepare_here

LOCAL = ["ray.address=local", "ray.num_cpus=2"]


def run(tmp_path, *settings, name="run"):
    cfg = load(PrepareConfig, [f"run={tmp_path / name}", *LOCAL, *settings])
    result = prepare(cfg)
    ws = Workspace(cfg.run)
    return ws.current("interactions"), ws.current("profiles"), result


def some_log(n_rows=3000, n_users=60, n_items=40, seed=0):
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "user_id": [f"user {n} ü" for n in rng.integers(n_users, size=n_rows)],
            "item_id": rng.integers(n_items, size=n_rows),
            "rating": rng.integers(1, 6, size=n_rows).astype(np.float32),
            "timestamp": 1_700_000_000 + rng.integers(10**6, size=n_rows),
        }
    )


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestOnRay:
    def test_row_order_and_files_do_not_change_the_result(self, tmp_path):
        log = some_log()
        shuffled = log.take(pa.array(np.random.default_rng(1).permutation(len(log))))
        for name, table, cuts in (("a", log, (0, 1000)), ("b", shuffled, (0, 2500))):
            (tmp_path / name).mkdir()
            for number, start in enumerate(cuts):
                stop = [*cuts, len(table)][number + 1]
                pq.write_table(
                    table.slice(start, stop - start), tmp_path / name / f"{number}.parquet"
                )
        one, profiles, _ = run(tmp_path, f"source={tmp_path / 'a'}", name="one")
        two, again, _ = run(tmp_path, f"source={tmp_path / 'b'}", name="two")
        assert one.manifest.files == two.manifest.files
        assert profiles.manifest.files == again.manifest.files
        # The same files under other names are the same source.
        (tmp_path / "a" / "0.parquet").rename(tmp_path / "a" / "9.parquet")
        three, third, _ = run(tmp_path, f"source={tmp_path / 'a'}", name="three")
        assert three.content_id == one.content_id
        assert third.content_id == profiles.content_id

    def test_a_second_run_reuses_and_another_split_keeps_the_interactions(self, tmp_path):
        pq.write_table(some_log(), tmp_path / "log.parquet")
        source = f"source={tmp_path / 'log.parquet'}"
        first = run(tmp_path, source)[2].build_ids
        assert run(tmp_path, source)[2].build_ids == first
        other = run(tmp_path, source, "split=ratings")[2].build_ids
        assert other["interactions"] == first["interactions"]
        assert other["profiles"] != first["profiles"]

    def test_a_dirty_csv_in_milliseconds(self, tmp_path):
        path = tmp_path / "log.csv.gz"
        with gzip.open(path, "wt", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["who", "what", "stars", "when", "junk"])
            for row in some_log().to_pylist():
                time = row["timestamp"] * 1000
                writer.writerow([row["user_id"], f"0{row['item_id']}", row["rating"], time, "x"])
            writer.writerow(['a, "quoted"\nname', "007", "", 1_700_000_000_000, ""])
            writer.writerow(["", "007", "4", 1_700_000_000_000, ""])
            writer.writerow(["bad", "007", "NaN", 1_700_000_000_000, ""])
            writer.writerow(["short", "007"])
        columns = ["columns.user=who", "columns.item=what", "columns.rating=stars"]
        interactions, profiles, _ = run(
            tmp_path, f"source={path}", *columns, "columns.timestamp=when"
        )
        facts = interactions.record()
        assert facts["timestamp_units"] == {"ms": 3003}
        assert facts["quarantined"] == {
            "missing user": 1,
            "rating is not a number": 1,
            "wrong number of fields": 1,
        }
        bad = sum(facts["quarantined"].values())
        assert facts["rows_in"] == facts["rows"] + facts["duplicates"] + bad == 3004
        (name,) = interactions.files(prefix="quarantine-")
        quarantine = pq.read_table(interactions.path(name)).to_pylist()
        assert {row["file"] for row in quarantine} == {"log.csv.gz"}
        opened = Profiles.open(profiles)
        assert 'a, "quoted"\nname' in opened.user_ids.to_pylist()
        assert "01" in opened.items["item_id"].to_pylist()
        times = opened.cells().timestamp
        assert times.min() >= 1_700_000_000
        assert times.max() < 1_701_000_001

    def test_profiles_hold_the_log(self, tmp_path):
        log = some_log()
        pq.write_table(log, tmp_path / "log.parquet")
        items = {"item_id": [3, 1, 999], "title": ["three", "one", "?"], "genre": ["a", "b", "c"]}
        pq.write_table(pa.table(items), tmp_path / "items.parquet")
        _, build, _ = run(
            tmp_path, f"source={tmp_path / 'log.parquet'}", f"items={tmp_path / 'items.parquet'}"
        )
        profiles = Profiles.open(build)
        names = profiles.items["item_id"].to_pylist()
        titles = dict(zip(names, profiles.items["title"].to_pylist(), strict=True))
        assert (titles["3"], titles["1"], titles["2"]) == ("three", "one", None)
        assert profiles.items["genre"][names.index("1")].as_py() == "b"
        assert profiles.facts.n_described_items == 2
        cells = profiles.cells()
        users = profiles.user_ids.to_pylist()
        found = {
            (users[u], names[i]): (float(profiles.levels.values[r]), t)
            for u, i, r, t in zip(
                cells.user_num[cells.rows], cells.item_num, cells.level, cells.timestamp
            )
        }
        frame = log.to_pandas().sort_values(["timestamp", "rating"])
        first = frame.drop_duplicates(["user_id", "item_id"])
        expected = {
            (u, str(i)): (r, t)
            for u, i, r, t in zip(first.user_id, first.item_id, first.rating, first.timestamp)
        }
        assert found == expected
        sizes = profiles.facts.catalogue
        assert sizes["val"] <= sizes["test"] <= sizes["all"] == profiles.n_items

    def test_logs_without_time_split_by_users_and_ratings(self, tmp_path):
        log = some_log().drop_columns(["timestamp", "rating"])
        pq.write_table(log, tmp_path / "log.parquet")
        for split in ("users", "ratings"):
            _, build, _ = run(tmp_path, f"source={tmp_path / 'log.parquet'}", f"split={split}")
            assert build.record()["has_time"] is False
            assert build.record()["levels"] == ["consumed"]
            assert Profiles.open(build).cells().timestamp.max() == 0
        with pytest.raises(DataError, match=r"no column 'timestamp'.*split=users, split=ratings"):
            run(tmp_path, f"source={tmp_path / 'log.parquet'}")
        untimed = log.append_column("timestamp", pa.nulls(len(log), pa.int64()))
        pq.write_table(untimed, tmp_path / "untimed.parquet")
        with pytest.raises(DataError, match=r"all are null.*split=users, split=ratings"):
            run(tmp_path, f"source={tmp_path / 'untimed.parquet'}", name="other")

    @pytest.mark.parametrize(
        ("rows", "settings", "message"),
        [
            ({"user_id": ["a"] * 9, "item_id": range(9), "timestamp": range(9)}, [], "1 user"),
            ({"user_id": [None] * 9, "item_id": range(9), "timestamp": range(9)}, [], "9 of 9"),
            (
                {"user_id": [], "item_id": [], "timestamp": []},
                [],
                "holds no rows",
            ),
            (
                {"user_id": ["a", "b"], "item_id": [1, 2], "timestamp": [5, 5]},
                [],
                "leave an empty window",
            ),
            (
                {"user_id": ["a", "b"], "item_id": [1, 2], "timestamp": [5, 5]},
                ["split=users"],
                "without rows",
            ),
            (
                {
                    "user_id": ["a", "b"],
                    "item_id": [1, 2],
                    "rating": [float("nan"), 1.0],
                    "timestamp": [1, 2],
                },
                [],
                "1 of 2 rows break a rule.*rating is not a number.*log.parquet row 0",
            ),
        ],
    )
    def test_bad_logs_are_one_line_and_leave_nothing(self, tmp_path, rows, settings, message):
        pq.write_table(pa.table(rows), tmp_path / "log.parquet")
        with pytest.raises(DataError, match=message) as caught:
            run(tmp_path, f"source={tmp_path / 'log.parquet'}", *settings)
        assert "\n" not in str(caught.value)
        assert not Workspace(str(tmp_path / "run")).has("profiles")
        left = [p for p in (tmp_path / "run").rglob("*") if p.is_file() and ".shuffle" in str(p)]
        assert left == []

    def test_given_folds_that_share_a_pair_are_refused(self, tmp_path):
        table = {
            "user_id": ["a", "a", "b", "b"],
            "item_id": [1, 1, 1, 2],
            "fold": ["train", "test", "val", "train"],
        }
        pq.write_table(pa.table(table), tmp_path / "folds.parquet")
        with pytest.raises(DataError, match=r"pair is in two windows: .*user 'a' item '1'"):
            run(tmp_path, "split=ratings", f"folds={tmp_path / 'folds.parquet'}")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "protocol", "cells"),
        [
            ("ml-1m-S", "users", [796139, 20448, 20117, 81588, 81896]),
            ("ml-1m-E", "ratings", [800595, 99703, 99911, 0, 0]),
            ("ml-1m-T", "temporal", [800164, 100024, 100021, 0, 0]),
            ("online-retail-S", "users", [210597, 5769, 5204, 23103, 21281]),
            ("movietweetings-2013-E", "ratings", [113412, 14078, 14205, 0, 0]),
        ],
    )
    def test_published_folds(self, tmp_path, data_dir, name, protocol, cells):
        folds = data_dir / "splits" / f"{name}.parquet"
        _, build, _ = run(tmp_path, f"split={protocol}", f"folds={folds}")
        assert [build.record()["n_cells"][window.name] for window in Window] == cells

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "facts"),
        [
            ("ml-1m", {"cutoffs": {"val": 975768738, "test": 978133414}, "n_users": 6040}),
            ("movietweetings-2013", {"n_users": 21081, "n_items": 12611}),
            ("online-retail", {"n_users": 4372, "n_items": 3684, "levels": ["purchase", "return"]}),
        ],
    )
    def test_real_logs(self, tmp_path, data_dir, name, facts):
        folder = data_dir / name
        interactions, build, _ = run(
            tmp_path,
            f"source={folder / 'interactions.parquet'}",
            f"items={folder / 'items.parquet'}",
        )
        assert {key: build.record()[key] for key in facts} == facts
        assert build.record()["n_described_items"] == build.record()["n_items"]
        found = interactions.record()
        assert found["rows_in"] == found["rows"] + found["duplicates"]


def test_an_object_store_holds_source_and_builds(tmp_path, monkeypatch, s3_bucket):
    # The workers of the session's cluster do not know the server, so tasks run in this process.
    prepare_here(monkeypatch)
    filesystem, path = open_filesystem(f"{s3_bucket}/logs/log.parquet")
    pq.write_table(some_log(), path, filesystem=filesystem)
    settings = [f"run={s3_bucket}/run", f"source={s3_bucket}/logs", f"cache_dir={tmp_path}"]
    cfg = load(PrepareConfig, settings)
    ids = prepare(cfg).build_ids
    ws = Workspace(cfg.run, cache_dir=str(tmp_path))
    profiles = Profiles.open(ws.current("profiles"))
    assert profiles.cells().n_cells == ws.current("interactions").record()["rows"]
    assert not [name for name in ws.current("interactions").files() if "shuffle" in name]
    assert prepare(cfg).build_ids == ids


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["split=tempral"], "split='tempral' is not accepted"),
        (["split=given", "folds=x.parquet"], "temporal|users|ratings, with folds= too"),
        (["folds="], "folds=''"),
        (["val_cut=0.9", "test_cut=0.8"], "test_cut=0.8"),
        (["val_share=0.6", "test_share=0.6"], "val_share"),
        (["dedupe=all"], "first|last"),
        (["max_bad_share=2"], "max_bad_share"),
        (["colums.user=x"], "did you mean 'columns"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        load(PrepareConfig, ["run=x", *settings])


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({}, ["source=missing.csv"], r"source=missing.csv does not exist"),
        ({"a.csv": ""}, ["source=a.csv"], "a.csv is empty"),
        ({"a.csv": "user,item_id\n1,2\n"}, ["source=a.csv"], "columns.user='user_id' .*'user'"),
        (
            {"a.csv": "user_id,item_id\n1,2\n"},
            ["source=a.csv", "columns.rating=stars"],
            "columns.rating='stars' is not in",
        ),
        ({"a.parquet": "PAR1"}, ["source=a.parquet"], "cannot be read as parquet"),
        (
            {"a.csv": "user_id,item_id\n1,2\n", "i.csv": "id,title\n1,x\n"},
            ["source=a.csv", "split=users", "items=i.csv"],
            "has no column 'item_id'",
        ),
        (
            {"a.csv": "user_id,item_id\n1,2\n"},
            ["source=a.csv", "split=users", "items=gone.csv"],
            "items=gone.csv does not exist",
        ),
    ],
)
def test_bad_sources_fail_before_ray_starts(tmp_path, monkeypatch, files, settings, message):
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(RaysysError, match=message) as caught:
        prepare(load(PrepareConfig, ["run=r", *settings]))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("r/*/*"))


def test_parts_cover_all_buckets():
    for n_rows, parts in ((0, 1), (524_288, 1), (524_289, 2), (10**7, 32), (10**12, 256)):
        ranges = bucket_ranges(n_rows)
        assert len(ranges) == parts
        assert [r.first for r in ranges] + [256] == [0] + [r.last for r in ranges]


def test_the_config_file_holds_the_defaults():
    assert load(PrepareConfig, yaml_path="configs/prepare.yaml") == PrepareConfig()
    assert json.dumps(RayConfig().__dict__)
