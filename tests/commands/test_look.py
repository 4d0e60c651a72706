"""look: what it prints is what prepare reads, and the command that it prints works when typed."""

import datetime
import gzip
import json
import shlex

import pyarrow.parquet as pq
import pytest

from raysys.cli import main
from raysys.commands.look import LookConfig, look
from raysys.config import load
from raysys.errors import ConfigError, DataError, RaysysError
from raysys.log.sniff import typed_value
from raysys.prepare.config import PrepareConfig
from raysys.store.builds import Workspace
from tests.support.logs import PAIRS, ROWS, json_line, read, table, write_lines


def looked(source, *settings):
    """Return what look prints, and the settings of the prepare command at its end."""
    text = look(load(LookConfig, [f"source={source}", *settings]))
    command, *words = shlex.split(text.strip().splitlines()[-1])
    assert (command, words[:2]) == ("raysys", ["prepare", "run=RUN"])
    return text, words[1:]


def text_log(separator, header=None, times=True):
    rows = (row if times else row[:3] for row in ROWS)
    lines = [separator.join(map(str, row)) for row in rows]
    return [header, *lines] if header else lines


SOURCES = {
    "plain.csv": lambda path: write_lines(path, text_log(",", "user_id,item_id,rating,timestamp")),
    "ratings.dat": lambda path: write_lines(path, text_log("::")),
    "u.data": lambda path: write_lines(path, text_log("\t")),
    "pipes.txt": lambda path: write_lines(path, text_log("|")),
    "bx.csv": lambda path: write_lines(
        path, text_log(";", '"User-ID";"ISBN";Größe', False), encoding="latin-1"
    ),
    "odd.csv": lambda path: write_lines(path, text_log(",", 'userId,"item [no], id",overall,time')),
    "a.jsonl": lambda path: write_lines(
        path,
        (
            json.dumps({"reviewerID": r.user, "asin": r.item, "unixReviewTime": r.time})
            for r in ROWS
        ),
    ),
    "objects.jsonl": lambda path: write_lines(path, (json_line(r, event={"a": 1}) for r in ROWS)),
    "sp ace.parquet": lambda path: pq.write_table(table(), path),
}


@pytest.mark.parametrize("name", SOURCES)
def test_the_command_at_the_end_reads_the_log(tmp_path, name):
    path = tmp_path / name
    SOURCES[name](path)
    own = ["columns.item=item [no], id"] if name == "odd.csv" else []
    text, words = looked(path, *own)
    found = read(load(PrepareConfig, words))
    assert found.pairs == PAIRS
    assert f"rows     {len(ROWS):,} good, 0 quarantined, {len(ROWS):,} read" in text
    assert "users    60\nitems    30\n" in text
    timeless = name == "bx.csv"
    assert ("split=users" in words) == timeless
    assert ("times    none" in text) == timeless
    assert timeless or "2017-07-14 02:40:00 to 2017-10-22 01:40:00 UTC (form: s 2,400)" in text
    if name == "objects.jsonl":
        assert "2400 of 2400 values are neither text nor numbers" in text


def test_what_would_be_quarantined_is_said_with_an_example(tmp_path):
    lines = text_log(",", "user_id,item_id,rating,timestamp")
    lines[7], lines[9], lines[11] = '"x,1,2,3', ",1,2,3", "rubbish"
    text, _ = looked(write_lines(tmp_path / "log.csv", lines))
    assert "rows     2,397 good, 3 quarantined, 2,400 read" in text
    assert "quarantined 1: a quote that does not close, e.g. log.csv line 8:" in text
    assert "quarantined 1: missing user, e.g. log.csv line 10:" in text
    assert "quarantined 1: wrong number of fields, e.g. log.csv line 12:" in text
    assert "would stop" not in text
    assert (
        "prepare would stop: more than max_bad_share=0.001"
        in looked(tmp_path / "log.csv", "max_bad_share=0.001")[0]
    )


def test_folders_ratings_events_and_the_catalogue(tmp_path):
    for name, rows in (("event=view", ROWS[:900]), ("event=buy", ROWS[900:])):
        (tmp_path / "log" / name).mkdir(parents=True)
        pq.write_table(table(rows), tmp_path / "log" / name / "p.parquet")
    lines = ["movieId|name", *(f"{i}|T {i}" for i in range(1, 26))]
    items = write_lines(tmp_path / "items.txt", lines)
    text, words = looked(tmp_path / "log", f"items={items}")
    assert "events   buy: 1,500, view: 900" in text
    assert "ratings  1: " in text
    assert "catalogue 25 items with title; it describes 25 of the 30 items above" in text
    keys = ["items_columns.item=movieId", "items_columns.title=name"]
    assert {*keys, "items_format.kind=csv", "items_format.separator=|"} <= set(words)
    write_lines(items, ["item_id|title", *(f"{i}.0|T {i}" for i in range(1, 26))])
    warned, _ = looked(tmp_path / "log", f"items={items}")
    assert "it describes 0 of the 30 items above\nWARNING  ids of the log: " in warned
    assert "of the catalogue: '1.0', '2.0', '3.0'" in warned


def test_a_sample_says_so_and_exact_reads_all(tmp_path, monkeypatch):
    monkeypatch.setattr("raysys.commands.look._SAMPLE_ROWS", 100)
    monkeypatch.setattr("raysys.commands.look._SAMPLE_PIECES", 2)
    for number in range(4):
        rows = ROWS[600 * number : 600 * (number + 1)]
        path = tmp_path / f"{number}.jsonl.gz"
        path.write_bytes(gzip.compress("".join(json_line(row) + "\n" for row in rows).encode()))
    sample, _ = looked(tmp_path)
    assert "read     the first 1,200 rows of 2 of 4 parts; exact=true reads all" in sample
    exact, words = looked(tmp_path, "exact=true")
    assert "read     all 2,400 rows" in exact
    assert words == ["run=RUN", f"source={tmp_path}"]


def test_settings_given_are_kept_and_errors_are_one_line(tmp_path):
    path = write_lines(tmp_path / "log.csv", text_log(",", "who,item_id,rating,timestamp"))
    with pytest.raises(
        ConfigError, match=r"columns.user='user_id' is not in .* which has who, item"
    ):
        looked(path)
    _, words = looked(
        path, "columns.user=who", "columns.rating=", "min_item_rows=2", "events=[a,b]"
    )
    given = {"columns.user=who", "columns.rating=", "min_item_rows=2", "events=[a,b]"}
    assert given <= set(words)


def test_lists_are_typed_as_they_are_read():
    names = ["a", "b c", " d", 'e"f', "g,h", "[i]", "ü", "null", "", "it's"]
    assert load(PrepareConfig, [f"columns.names={typed_value(names)}"]).columns.names == names


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_printed_command_typed(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "ratings.dat", text_log("::"))
    assert main(["look", "source=ratings.dat"]) == 0
    command = capfd.readouterr().out.strip().splitlines()[-1]
    assert main([*shlex.split(command)[1:], "split=users"]) == 0
    record = json.loads(capfd.readouterr().out)
    facts = record["interactions"]
    assert facts["rows_in"] == len(ROWS)
    assert facts["columns"]["user_id"] == {"source": "user_id", "rows": len(ROWS), "of": len(ROWS)}
    assert facts["lines"]["rows"] == facts["lines"]["lines"] == len(ROWS)
    assert Workspace("RUN").has("profiles")


@pytest.mark.parametrize(
    ("form", "warns"),
    [("%m/%d/%Y %I:%M:%S %p", False), ("%d.%m.%Y %H:%M", False), ("%m/%d/%y", True)],
)
def test_a_form_of_times_is_proposed_and_read(tmp_path, form, warns):
    days = range(3) if warns else range(300)
    start = datetime.datetime(2019, 1, 2, 15, 4, tzinfo=datetime.UTC)
    times = [(start + datetime.timedelta(days=day)).strftime(form) for day in days]
    rows = [f"u{n % 7},i{n % 5},{time}" for n, time in enumerate(times)]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    text = look(load(LookConfig, [f"source={path}"]))
    assert f"rows     {len(rows)} good, 0 quarantined" in text
    assert shlex.quote(f"format.time={form}") in text.splitlines()[-1]
    assert ("WARNING  the times also read as" in text) == warns


ROW = "1,2,1500000000\n"
HEAD = "user_id,item_id,timestamp\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.csv": b""}, "a.csv is empty"),
        ({"a.csv": b"\n\n\n"}, "a.csv is empty"),
        ({"a.csv.gz": gzip.compress(HEAD.encode() + ROW.encode(), mtime=0)[:-9]}, "Truncated"),
        ({"a.csv.gz": HEAD.encode()}, "cannot be read as csv"),
        ({"a.csv": HEAD.encode()}, "holds no rows"),
        ({"a.csv": HEAD.encode() + ROW.encode(), "b.csv": ROW.encode()}, "b.csv has no column 'us"),
        ({"a.xlsx": b"PK\x03\x04 and more"}, "it is an archive or a spreadsheet"),
    ],
)
def test_files_that_hold_no_log_are_one_line(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    source = tmp_path if len(files) > 1 else tmp_path / next(iter(files))
    with pytest.raises(RaysysError, match=message) as caught:
        look(load(LookConfig, [f"source={source}"]))
    assert "\n" not in str(caught.value)


def test_an_empty_part_is_left_out(tmp_path):
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "b.csv").write_text(HEAD + ROW * 3)
    assert "rows     3 good" in look(load(LookConfig, [f"source={tmp_path}"]))


@pytest.mark.parametrize("separator", ["^", "\x01", "\\x01"])
def test_separators_of_dumps(tmp_path, separator):
    mark = separator.replace("\\x01", "\x01")
    (tmp_path / "a.txt").write_text((HEAD + ROW * 3).replace(",", mark))
    text = look(load(LookConfig, [f"source={tmp_path / 'a.txt'}"]))
    assert "rows     3 good" in text
    shown = separator.replace("\x01", "\\x01")
    assert shlex.quote(f"format.separator={shown}") in text.splitlines()[-1]
    cfg = load(PrepareConfig, [f"source={tmp_path / 'a.txt'}", f"format.separator={separator}"])
    assert cfg.format.separator == separator


def test_an_item_file_without_header_is_named_as_such(tmp_path):
    (tmp_path / "log.csv").write_text(HEAD + ROW * 3)
    (tmp_path / "items.csv").write_text("2,Two,1999\n3,Three,2001\n")
    text = look(load(LookConfig, [f"source={tmp_path / 'log.csv'}", f"items={tmp_path}/items.csv"]))
    assert "it describes 1 of the 1 items" in text
    assert "items_columns.names=[item_id,title,column3]" in text.splitlines()[-1]
    with pytest.raises(DataError, match=r"items=nope\.csv does not exist"):
        look(load(LookConfig, [f"source={tmp_path / 'log.csv'}", "items=nope.csv"]))


def test_times_of_1970_are_warned_about_and_no_split_is_proposed_for_bad_rows(tmp_path):
    (tmp_path / "days.csv").write_text(HEAD + "1,2,45437.33\n")
    assert "WARNING  all times lie in 1970" in look(load(LookConfig, [f"source={tmp_path}"]))
    (tmp_path / "days.csv").write_text(HEAD + "1,2,1500000000,\n" * 9)
    assert "split=" not in look(load(LookConfig, [f"source={tmp_path}"])).splitlines()[-1]
