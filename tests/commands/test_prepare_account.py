"""prepare says for every column and line of a log what became of it."""

import logging

import pyarrow.parquet as pq
import pytest

from raysys.commands.prepare import PrepareConfig, prepare
from raysys.config import load
from raysys.data.interactions import ColumnUse, InteractionsFacts
from raysys.data.profiles import Profiles
from raysys.errors import DataError
from raysys.log.accounting import column_uses, line_counts, log_account, unfit_defaults
from raysys.log.columns import Mapped
from raysys.log.formats.contract import Tally
from raysys.prepare.append import add_facts
from raysys.store.builds import Workspace
from tests.support.logs import PAIRS, ROWS, json_line, table, write_lines

MAPPED = Mapped(
    {"user_id": "who", "item_id": "item_id", "rating": "rating"},
    {"x": "not asked for", "event": "switched off", "timestamp": "is of type list<> in a.parquet"},
    ("rating", "timestamp"),
)


def facts_of(present, *, n_rows, tally=None, **counts):
    plain = {"rows_in": n_rows, "rows": n_rows, "duplicates": 0, "filtered": 0, "quarantined": {}}
    return InteractionsFacts(
        **(plain | counts),
        n_users=2,
        has_ratings=True,
        has_events=False,
        has_time=False,
        has_folds=False,
        time_range=None,
        timestamp_units={},
        columns=column_uses(MAPPED, present, n_rows=n_rows),
        left_out=MAPPED.left_out,
        lines=line_counts(tally or Tally()),
    )


def test_facts_of_two_logs_add_up():
    first = facts_of({"user_id": 9, "item_id": 10}, n_rows=10)
    tally = Tally(lines=6, header=1, rows=5)
    second = facts_of({"user_id": 5, "rating": 4}, n_rows=5, tally=tally)
    both = add_facts(first, second)
    assert both.columns == {
        "user_id": ColumnUse("who", 14, 15),
        "item_id": ColumnUse("item_id", 10, 15),
        "rating": ColumnUse("rating", 4, 15),
    }
    assert both.left_out == MAPPED.left_out
    assert both.lines["lines"] == 6
    assert first.lines is None
    assert both.rows_in == 15


def test_the_closing_lines_warn_of_what_was_not_meant(caplog):
    counts = {"rows": 9, "quarantined": {"missing user": 1}}
    facts = facts_of({"user_id": 9, "item_id": 10}, n_rows=10, **counts)
    with caplog.at_level(logging.INFO):
        log_account(facts)
    lines = {record.getMessage(): record.levelname for record in caplog.records}
    assert lines == {
        "prepare column name=user_id from=who rows=9 of 10": "INFO",
        "prepare column name=item_id from=item_id rows=10 of 10": "INFO",
        "prepare column left out name=x reason=not asked for": "INFO",
        "prepare column left out name=event reason=switched off": "INFO",
        "prepare column left out name=timestamp reason=is of type list<> in a.parquet": "WARNING",
        "prepare rows rows_in=10 rows=9 duplicates=0 quarantined={'missing user': 1} filtered=0": (
            "INFO"
        ),
    }


def test_only_columns_that_nobody_named_are_left_out():
    odd = {"rating": 2, "user_id": 10, "timestamp": 1}
    assert unfit_defaults(MAPPED, odd, 10, share=0.1) == {
        "rating": "2 of 10 values are neither text nor numbers"
    }


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestOnRay:
    def prepared(self, tmp_path, *settings, name="run"):
        cfg = load(PrepareConfig, [f"run={tmp_path / name}", *settings])
        prepare(cfg)
        ws = Workspace(cfg.run)
        return ws.current("interactions"), ws.current("profiles")

    def test_objects_in_an_optional_column_and_a_second_log(self, tmp_path, caplog):
        lines = [json_line(r, event={"type": "a"}, x=1) for r in ROWS[:1200]]
        lines[5] = "rubbish"
        path = write_lines(tmp_path / "a.jsonl", ["", *lines])
        items = write_lines(tmp_path / "i.csv", ["item_id,title", *(f"{i}.0,T" for i in range(30))])
        with caplog.at_level(logging.WARNING):
            first, _ = self.prepared(tmp_path, f"source={path}", f"items={items}")
        facts = first.record()
        assert facts["rows_in"] == 1200
        assert facts["rows"] + facts["duplicates"] == 1199
        assert facts["quarantined"] == {"not JSON": 1}
        assert facts["lines"] == {
            "lines": 1201, "header": 0, "blank": 1, "rows": 1199, "inside": 0, "unreadable": 1
        }  # fmt: skip
        assert facts["columns"]["user_id"] == {"source": "user_id", "rows": 1199, "of": 1200}
        assert facts["left_out"]["event"] == "1199 of 1200 values are neither text nor numbers"
        assert facts["left_out"]["x"] == "not asked for"
        (name,) = first.files(prefix="quarantine-")
        (bad,) = pq.read_table(first.path(name)).to_pylist()
        assert (bad["file"], bad["line"], bad["text"]) == ("a.jsonl", 7, "rubbish")
        assert not facts["has_events"]
        assert (
            "items describe 0 of the log's 30 items; ids of the log that items= lacks"
            in caplog.text
        )
        second = [json_line(row) for row in ROWS[1200:]]
        path = write_lines(tmp_path / "b.jsonl", second)
        both, _ = self.prepared(tmp_path, f"source={path}", "mode=append")
        assert both.record()["lines"]["lines"] == 1201 + len(ROWS) - 1200
        assert both.record()["columns"]["item_id"]["rows"] == len(ROWS) - 1
        assert both.record()["rows_in"] == len(ROWS)

    def test_folders_and_types_that_change(self, tmp_path):
        for name, rows, over in (
            ("event=view", ROWS[:1200], {}),
            ("event=buy", ROWS[1200:], {"user_id": [float(r.user) for r in ROWS[1200:]]}),
        ):
            (tmp_path / "log" / name).mkdir(parents=True)
            pq.write_table(table(rows, rating=None, **over), tmp_path / "log" / name / "p.parquet")
        interactions, profiles = self.prepared(tmp_path, f"source={tmp_path / 'log'}")
        assert interactions.record()["lines"] is None
        opened = Profiles.open(profiles)
        assert sorted(opened.levels.names) == ["buy", "view"]
        users, cells = opened.user_ids.to_pylist(), opened.cells()
        names = opened.items["item_id"].to_pylist()
        pairs = {(users[u], names[i]) for u, i in zip(cells.user_num[cells.rows], cells.item_num)}
        assert pairs == set(PAIRS)

    def test_a_log_of_the_wrong_form_proposes_another(self, tmp_path):
        lines = ["user_id,item_id,note,timestamp"]
        lines += [f'{r.user},{r.item},"say \\"hi\\", ok",{r.time}' for r in ROWS]
        path = write_lines(tmp_path / "log.csv", lines)
        with pytest.raises(
            DataError, match=r"2400 wrong number of fields.*; try 'format.escape=\\'"
        ):
            self.prepared(tmp_path, f"source={path}")
        build, _ = self.prepared(tmp_path, f"source={path}", "format.escape=\\")
        assert build.record()["rows_in"] == len(ROWS)
        again, _ = self.prepared(tmp_path, f"source={path}", "format.escape=\\", 'format.quote="')
        assert again.build_id != build.build_id  # how a log is read is part of what is built
