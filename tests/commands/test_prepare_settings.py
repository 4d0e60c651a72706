"""What each setting of prepare does to the builds of a small log, without a cluster."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from raysys.commands.pipeline import PipelineConfig
from raysys.commands.prepare import PrepareConfig, prepare
from raysys.config import load
from raysys.data.profiles import Profiles
from raysys.data.schema import Window
from raysys.errors import DataError
from raysys.store.builds import Build, Workspace
from tests.support.logs import START, json_line, planted, prepare_here, table, write_lines

DAY = 86_400
ROWS = planted()
EVENTS = [("view", "buy", "hover")[number % 3] for number in range(len(ROWS))]


class Built(NamedTuple):
    """The profiles, and what the two builds say of themselves."""

    profiles: Profiles
    record: dict
    interactions: Build

    @property
    def counted(self):
        return self.interactions.record()

    @property
    def n_read(self):
        """Return the rows that are good, repeats too."""
        return self.counted["rows"] + self.counted["duplicates"]


@pytest.fixture
def built(tmp_path, monkeypatch):
    """Return a function from a log and settings to what prepare builds."""
    prepare_here(monkeypatch)

    def build(log, *settings):
        path = tmp_path / "log.parquet"
        pq.write_table(log if isinstance(log, pa.Table) else pa.table(log), path)
        prepare(load(PrepareConfig, [f"run={tmp_path / 'run'}", f"source={path}", *settings]))
        workspace = Workspace(str(tmp_path / "run"))
        profiles = workspace.current("profiles")
        return Built(Profiles.open(profiles), profiles.record(), workspace.current("interactions"))

    return build


def windows(found):
    """Return the number of cells of each window."""
    return np.bincount(found.profiles.cells().window, minlength=5).tolist()


def test_events_outside_the_list_are_set_aside_and_ignored_ones_are_left_out(built):
    log = table(rating=None, event=EVENTS)
    whole = built(log)
    assert (whole.n_read, whole.counted["filtered"]) == (2400, 0)
    some = built(log, "events=[view,buy]", "max_bad_share=0.5")
    assert (some.n_read, some.counted["filtered"]) == (1600, 0)
    assert sum(some.counted["quarantined"].values()) == 800
    ignored = built(log, "ignore_events=[hover]")
    assert (ignored.n_read, ignored.counted["filtered"]) == (1600, 800)
    assert ignored.counted["quarantined"] == {}
    assert sorted(ignored.profiles.levels.names) == sorted(some.profiles.levels.names)
    assert sorted(ignored.profiles.levels.names) == ["buy", "view"]


def test_negative_events_are_not_liked(built):
    levels = built(table(rating=None, event=EVENTS), "negative_events=[hover]").profiles.levels
    assert dict(zip(levels.names, levels.liked)) == {"buy": True, "view": True, "hover": False}


@pytest.mark.parametrize(
    ("word", "kept"), [("min_rating=2", {2, 3, 4, 5}), ("max_rating=4", {1, 2, 3, 4})]
)
def test_ratings_out_of_range_are_set_aside(built, word, kept):
    found = built(table(), word, "max_bad_share=0.5")
    assert set(found.counted["quarantined"]) == {"rating out of range"}
    assert set(found.profiles.levels.values) == kept
    assert found.n_read == sum(row.rating in kept for row in ROWS)


def test_liked_levels_are_those_named(built):
    levels = built(table(), "liked_levels=[1]").profiles.levels
    assert levels.liked == (True, False, False, False, False)
    assert built(table()).profiles.levels.liked == (False, False, False, True, True)


def test_a_larger_share_of_bad_rows_stops_the_job(built):
    users = [None if number < 50 else row.user for number, row in enumerate(ROWS)]
    with pytest.raises(DataError, match=r"max_bad_share=0\.01"):
        built(table(user_id=users))
    found = built(table(user_id=users), "max_bad_share=0.03")
    assert found.counted["quarantined"] == {"missing user": 50}


def test_which_of_several_rows_stays(built):
    pairs = {(row.user, row.item) for row in ROWS}
    lasts = {(row.user, row.item): row.time for row in ROWS}
    last = built(table(), "dedupe=last")
    assert last.counted["duplicates"] == len(ROWS) - len(pairs)
    assert sorted(last.profiles.cells().timestamp) == sorted(lasts.values())
    count = built(table(), "dedupe=count")
    assert sorted(count.profiles.cells().timestamp) != sorted(lasts.values())
    rows = pa.concat_tables(pq.read_table(url) for url in count.interactions.urls(".parquet"))
    assert (len(rows), pc.sum(rows["count"]).as_py()) == (len(pairs), len(ROWS))


def test_cuts_are_quantiles_of_time_or_seconds(built):
    log = {
        "user_id": np.repeat(range(4), 5),
        "item_id": list(range(5)) * 4,
        "timestamp": [START + number * DAY for number in range(20)],
    }
    assert windows(built(log))[:3] == [16, 2, 2]
    found = built(log, "val_cut=0.5", f"test_cut={START + 12 * DAY}")
    assert windows(found)[:3] == [10, 2, 8]
    assert found.record["cutoffs"] == {"val": START + 10 * DAY, "test": START + 12 * DAY}


@pytest.mark.parametrize("split", ["users", "ratings"])
def test_shares_of_users_or_ratings_are_held_out(built, split):
    counts = np.array(windows(built(table(), f"split={split}", "val_share=0.4", "test_share=0.2")))
    held = [counts[[Window.VAL, Window.VAL_IN]].sum(), counts[[Window.TEST, Window.TEST_IN]].sum()]
    assert np.array(held) / counts.sum() == pytest.approx([0.4, 0.2], abs=0.12)


def test_given_folds_mean_what_the_split_says(built, tmp_path):
    folds = {
        "user_id": np.repeat(["a", "b", "c"], 5),
        "item_id": list("vwxyz") * 3,
        "fold": ["train"] * 5 + ["val_in"] * 3 + ["val_out"] * 2 + ["test_in"] * 4 + ["test_out"],
    }
    pq.write_table(pa.table(folds), tmp_path / "folds.parquet")
    words = ("split=users", f"folds={tmp_path / 'folds.parquet'}")
    assert windows(built(table(), *words)) == [5, 2, 1, 3, 4]


def test_users_and_items_with_too_few_or_many_rows_are_dropped(built):
    items = {"a": [0], "b": [0, 1], "c": [0, 1, 2, 3], "d": [2, 4]}
    rows = [(user, item) for user, known in items.items() for item in known]
    rows += [("z", 0), ("z", 1)]  # of nobody's fit window
    log = {
        "user_id": [user for user, _ in rows],
        "item_id": [item for _, item in rows],
        "timestamp": [START + second for second in range(len(rows))],
    }
    cuts = (f"val_cut={START + 9}", f"test_cut={START + 10}")

    def left(*words):
        found = built(log, *cuts, *words)
        return "".join(sorted(found.profiles.user_ids.to_pylist())), windows(found)[Window.FIT]

    assert left() == ("abcdz", 9)
    assert left("min_user_rows=2") == ("bcdz", 8)
    assert left("max_user_rows=3") == ("abdz", 5)
    assert left("min_item_rows=2") == ("abcdz", 7)
    assert left("min_user_rows=2", "min_item_rows=2") == ("bcdz", 6)  # d holds one item now
    assert left("min_user_rows=2", "min_item_rows=2", "core_rounds=9") == ("bcz", 4)


def test_an_item_file_describes_the_items(built, tmp_path):
    pq.write_table(pa.table({"item_id": ["3"], "title": ["Three"]}), tmp_path / "items.parquet")
    items = built(table(), f"items={tmp_path / 'items.parquet'}").profiles.items
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist()))
    assert titles.pop("3") == "Three"
    assert set(titles.values()) == {None}


@pytest.mark.parametrize("role", ["user", "item", "rating", "timestamp", "event"])
def test_columns_are_read_under_the_names_given(built, role):
    ours = {"user": "user_id", "item": "item_id"}.get(role, role)
    log = table(event=EVENTS)
    other = log.rename_columns(["my own" if name == ours else name for name in log.column_names])
    found = built(other, f"columns.{role}=my own")
    assert "my own" in found.counted["columns"][ours].values()
    assert found.counted["columns"][ours]["rows"] == len(ROWS)


def test_the_format_is_what_the_settings_say_and_not_the_name(built, tmp_path):
    path = write_lines(tmp_path / "log.txt", map(json_line, ROWS))
    assert built(table(), f"source={path}", "format.kind=jsonl").n_read == len(ROWS)


def test_text_without_a_header_is_read_under_the_names_given(built, tmp_path):
    lines = [f"{row.user};{row.item};{row.time}" for row in ROWS]
    path = write_lines(tmp_path / "log.csv", lines)
    words = (f"source={path}", "columns.names=[user_id,item_id,timestamp]", "format.separator=;")
    assert built(table(), *words).n_read == len(ROWS)
    write_lines(path, ["who;what;when", *lines])
    with pytest.raises(DataError, match="absurd timestamp"):
        built(table(), *words, "max_bad_share=0")
    assert built(table(), *words, "format.header=true").n_read == len(ROWS)


OLD_SPLITS = [
    (["split=given", "protocol=users"], "users", "split=given protocol=users is split=users now"),
    (["split=ratings", "protocol=users"], "ratings", "key protocol is gone, its value is ignored"),
    (["protocol=users"], "temporal", "key protocol is gone, its value is ignored"),
    (["split=users", "protocol=null"], "users", ""),
    (["protocol=null"], "temporal", ""),
]


@pytest.mark.parametrize(("words", "split", "warning"), OLD_SPLITS)
def test_folds_are_taken_as_they_were_called_before(tmp_path, caplog, words, split, warning):
    path = tmp_path / "c.yaml"
    for order in (words, words[::-1]):
        path.write_text("".join(word.replace("=", ": ") + "\n" for word in order))
        half = tmp_path / "half.yaml"
        half.write_text(order[0].replace("=", ": ") + "\n")
        for given in ((order, None), ([], path), (order[1:], half)):
            caplog.clear()
            cfg = load(PrepareConfig, ["folds=f", *given[0]], yaml_path=given[1])
            assert cfg.split == split
            assert warning in caplog.text
            assert len(caplog.records) == bool(warning)


@pytest.mark.parametrize("turn", [1, -1])
def test_folds_of_a_pipeline_are_taken_as_they_were_called_before(tmp_path, caplog, turn):
    words = ["split=given", "prepare.folds=f", "prepare.protocol=users"][::turn]
    (tmp_path / "c.yaml").write_text("prepare: {protocol: users, folds: f}\nsplit: given\n")
    for cfg in (
        load(PipelineConfig, words),
        load(PipelineConfig, yaml_path=str(tmp_path / "c.yaml")),
    ):
        assert (cfg.split, cfg.prepare.split) == ("users", "users")
        assert cfg.prepare.folds is not None
    assert caplog.text.count("split=given prepare.protocol=users is split=users now") == 2
    caplog.clear()
    cfg = load(PipelineConfig, ["split=ratings", "prepare.protocol=users"])
    assert cfg.prepare.split == "ratings"
    assert "key prepare.protocol is gone" in caplog.text
