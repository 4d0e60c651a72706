"""Shapes and faults of real logs, each with its neighbours: what is read, and what is set aside."""

import datetime
import gzip
import json
import shlex
from collections import Counter
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.errors import ConfigError, DataError
from raysys.log.sources import list_files
from raysys.store.storage import open_filesystem
from tests.support.logs import (
    PAIRS,
    RATINGS,
    ROWS,
    TIMES,
    json_line,
    read_log,
    table,
    write_lines,
)

HALF = len(ROWS) // 2
STRAY, FIELDS = "a quote that does not close", "wrong number of fields"


def delimited(separator, rows=ROWS, note="Plain"):
    """Return a header and lines of user_id, item_id, note, timestamp."""
    notes = note if callable(note) else lambda number: note
    lines = (
        separator.join(map(str, (row.user, row.item, notes(n), row.time)))
        for n, row in enumerate(rows)
    )
    return [separator.join(("user_id", "item_id", "note", "timestamp")), *lines]


class TestStrayQuotes:
    @pytest.mark.parametrize(
        ("note", "n_lines"),
        [
            ('"Weird Al', 1),  # never closes
            ('"', 1),  # the next one would close it, over many rows
            ('"Weird Al""', 1),
            ('"He said "hi" to me"', 0),
            ('"Weird" Al', 0),
            ('Weird "Al', 0),
            ("'Weird Al", 0),
        ],
    )
    def test_one_in_a_column_that_is_not_read_costs_its_line_at_most(self, tmp_path, note, n_lines):
        spots = range(7, len(ROWS), 400)
        lines = delimited(",", note=lambda n: note if n in spots else "Plain")
        found = read_log(write_lines(tmp_path / "log.csv", lines))
        bad = set(spots) if n_lines else set()
        assert found.pairs == sorted(p for n, p in enumerate(pairs_of(ROWS)) if n not in bad)
        assert found.reasons == (Counter({STRAY: len(bad)}) if bad else Counter())
        assert sorted(line for _, line, _ in found.places) == [n + 2 for n in sorted(bad)]
        tabs = [line.replace(",", "\t") for line in lines]
        assert read_log(write_lines(tmp_path / "log.tsv", tabs)).pairs == PAIRS

    @pytest.mark.parametrize("spot", [0, len(ROWS) - 1])
    def test_one_at_either_end_of_the_file(self, tmp_path, spot):
        lines = delimited(",", note=lambda n: '"x' if n == spot else "y")
        found = read_log(write_lines(tmp_path / "log.csv", lines))
        assert len(found.rows) == len(ROWS) - 1
        assert found.places == [("log.csv", spot + 2, None)]

    def test_values_over_several_lines_go_on_working(self, tmp_path):
        note = '"first\nsecond, with a comma\n\nfourth ""quoted"" line"'
        found = read_log(write_lines(tmp_path / "log.csv", delimited(",", note=note)))
        assert found.pairs == PAIRS
        assert found.tally.inside == 3 * len(ROWS)

    def test_quotes_enclose_values_of_tsv_where_the_user_says_so(self, tmp_path):
        path = write_lines(tmp_path / "log.tsv", delimited("\t", note='"a\tb\nc"'))
        assert read_log(path, 'format.quote="').pairs == PAIRS
        as_text = read_log(path).reasons
        assert as_text == {FIELDS: len(ROWS), "absurd timestamp": len(ROWS)}

    def test_no_quotes_at_all_where_the_user_says_so(self, tmp_path):
        lines = delimited(",", note='"x')
        path = write_lines(tmp_path / "log.csv", lines)
        assert read_log(path, "format.quote=").pairs == PAIRS


def pairs_of(rows):
    return [(str(row.user), str(row.item)) for row in rows]


class TestJsonTypes:
    @pytest.mark.parametrize("late", [1, 1001, len(ROWS) - 1])
    def test_a_key_that_appears_late_is_found(self, tmp_path, late):
        lines = (
            json_line(row, **({"rating": row.rating} if n >= late else {}))
            for n, row in enumerate(ROWS)
        )
        path = write_lines(tmp_path / "log.jsonl", lines)
        for settings in ([], ["columns.rating=rating"]):
            found = read_log(path, *settings)
            assert found.pairs == PAIRS
            expected = Counter(float(row.rating) for row in ROWS[late:])
            assert found.of(2) == expected + Counter({None: late})

    def test_a_required_key_that_appears_late_is_found(self, tmp_path):
        lines = [
            json_line(row).replace("user_id", "nobody" if n < 1100 else "user_id")
            for n, row in enumerate(ROWS)
        ]
        found = read_log(write_lines(tmp_path / "log.jsonl", lines))
        assert found.reasons == Counter({"missing user": 1100})
        assert found.pairs == sorted(pairs_of(ROWS[1100:]))

    @pytest.mark.parametrize(
        "value",
        [
            lambda n, x: x if n < 1500 else x + 0.0,
            lambda n, x: x if n % 2 else float(x),
            lambda n, x: str(x) if n % 3 == 0 else x,
            lambda n, x: None if n == 0 else str(float(x)),
        ],
    )
    def test_numbers_and_texts_of_one_column_mix(self, tmp_path, value):
        lines = (
            json.dumps(
                {
                    "user_id": value(n, row.user) or row.user,
                    "item_id": row.item,
                    "rating": value(n, row.rating) or row.rating,
                    "timestamp": value(n, row.time) or row.time,
                }
            )
            for n, row in enumerate(ROWS)
        )
        found = read_log(write_lines(tmp_path / "log.jsonl", lines))
        assert found.reasons == Counter()
        if '"1.0"' not in (tmp_path / "log.jsonl").read_text():  # as text, 1.0 is another id
            assert found.pairs == PAIRS
        assert found.of(2) == RATINGS
        assert found.of(3) == TIMES

    def test_files_may_differ_in_types(self, tmp_path):
        for name, rows, kind in (("0", ROWS[:HALF], int), ("1", ROWS[HALF:], float)):
            lines = (json_line(row, rating=kind(row.rating)) for row in rows)
            write_lines(tmp_path / "log" / f"{name}.jsonl", lines)
        found = read_log(tmp_path / "log")
        assert (found.pairs, found.of(2)) == (PAIRS, RATINGS)

    @pytest.mark.parametrize("first", [0, 1200])
    @pytest.mark.parametrize("value", [{"type": "click"}, ["click"], True])
    def test_an_optional_column_of_objects_is_left_out(self, tmp_path, first, value):
        lines = (
            json_line(row, event=value if n >= first else "view") for n, row in enumerate(ROWS)
        )
        path = write_lines(tmp_path / "log.jsonl", lines)
        found = read_log(path)
        assert (found.pairs, found.of(4)) == (PAIRS, {None: len(ROWS)})
        assert "neither text nor numbers" in found.left_out["event"]
        switched = read_log(path, "columns.event=")
        assert (switched.pairs, switched.left_out) == (PAIRS, {"event": "switched off"})
        named = read_log(path, "columns.event=event")
        assert named.reasons == {"event is neither text nor a number": len(ROWS) - first}

    def test_a_few_objects_are_bad_rows(self, tmp_path):
        lines = (json_line(row, event={} if n < 5 else "view") for n, row in enumerate(ROWS))
        found = read_log(write_lines(tmp_path / "log.jsonl", lines))
        assert found.of(4) == {"view": len(ROWS) - 5}
        assert [line for _, line, _ in found.places] == [1, 2, 3, 4, 5]

    def test_ids_keep_every_digit_and_letter(self, tmp_path):
        ids = ["007", "7", " 7 ", "null", "NaN", "true", '"', "a\nb", "2020-01-01", "ü"]
        numbers = [9, 2**63, 2**70, -3, 5.0]
        lines = [json.dumps({"user_id": value, "item_id": "i"}) for value in [*ids, *numbers]]
        lines += [
            '{"\\u0075ser_id": "escaped", "item_id": "i"}',
            '{"user_id":1,"user_id":2,"item_id":3}',
        ]
        found = read_log(write_lines(tmp_path / "log.jsonl", lines))
        expected = [*ids, "9", str(2**63), str(2**70), "-3", "5", "escaped", "2"]
        assert [row[0] for row in found.rows] == expected

    def test_a_key_that_is_nowhere_is_one_error(self, tmp_path):
        lines = (json_line(row).replace("user_id", "userId") for row in ROWS)
        path = write_lines(tmp_path / "log.jsonl", lines)
        with pytest.raises(
            ConfigError, match=r"which has userId, item_id.*try columns.user=userId"
        ):
            read_log(path)
        with pytest.raises(ConfigError, match=r"columns.event='kind' is not in"):
            read_log(path, "columns.user=userId", "columns.event=kind")


class TestBrokenLines:
    GOOD = [json_line(row) for row in ROWS]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ('{"user_id": 1, "item_', "not JSON"),
            ("xx", "not JSON"),
            ('{"user_id":1,"item_id":2,"timestamp":3}{"user_id":1}', "not JSON"),
            ("[1, 2]", "not a JSON object"),
            ("3", "not a JSON object"),
            ('{"user_id": "\\ud800", "item_id": 1, "timestamp": 5}', "not UTF-8 text"),
            (
                '{"user_id": [1], "item_id": 1, "timestamp": 5}',
                "user_id is neither text nor a number",
            ),
            (
                '{"user_id": NaN, "item_id": 1, "timestamp": 5}',
                "user_id is neither text nor a number",
            ),
            ('{"item_id": 1, "timestamp": 5}', "missing user"),
            ("[" * 100_000, "not JSON"),
        ],
    )
    @pytest.mark.parametrize("place", [0, 1500, len(ROWS)])
    def test_one_is_a_bad_row_with_its_number(self, tmp_path, line, reason, place):
        lines = [*self.GOOD[:place], line, *self.GOOD[place:]]
        found = read_log(write_lines(tmp_path / "log.jsonl", lines))
        assert found.pairs == PAIRS
        assert found.reasons == {reason: 1}
        assert found.places == [("log.jsonl", place + 1, None)]

    def test_a_writer_that_died(self, tmp_path):
        (tmp_path / "log.jsonl").write_text("\n".join(self.GOOD)[:-20])
        found = read_log(tmp_path / "log.jsonl")
        assert len(found.rows) == len(ROWS) - 1
        assert found.places == [("log.jsonl", len(ROWS), None)]

    @pytest.mark.parametrize("name", ["log.jsonl", "log.csv", "log.tsv"])
    def test_marks_returns_and_blank_lines(self, tmp_path, name):
        lines = self.GOOD if "json" in name else delimited("\t" if "tsv" in name else ",")
        lines = ["", *lines[:700], "", "   ", *lines[700:], ""]
        path = write_lines(tmp_path / name, lines, encoding="utf-8-sig", end="\r\n")
        found = read_log(path)
        assert (found.pairs, found.reasons) == (PAIRS, Counter())
        assert found.tally.blank == 4

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig", "cp1251"])
    @pytest.mark.parametrize("name", ["log.jsonl", "log.csv"])
    def test_encodings(self, tmp_path, encoding, name):
        lines = [json.dumps({"user_id": "я", "item_id": "й"}, ensure_ascii=False)] * 3
        lines = lines if "json" in name else ["user_id,item_id", *["я,й"] * 3]
        path = write_lines(tmp_path / name, lines, encoding=encoding)
        known = encoding in ("utf-16", "utf-8-sig")
        found = read_log(path, *([] if known else [f"format.encoding={encoding}"]))
        assert [row[:2] for row in found.rows] == [("я", "й")] * 3

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("one value", FIELDS),
            ("1,2,3,4,5", FIELDS),
            ("1,2,x", FIELDS),
            (",2,x,5", "missing user"),
            ("1,2,x,tomorrow", "absurd timestamp"),
            ("\xff,2,x,5", "not UTF-8 text"),
            ('1,2,"x,5', STRAY),
        ],
    )
    @pytest.mark.parametrize("place", [1, 1500, len(ROWS) + 1])
    def test_one_of_delimited_text(self, tmp_path, line, reason, place):
        lines = delimited(",")
        lines.insert(place, line)
        data = "".join(line + "\n" for line in lines).encode("latin-1")
        (tmp_path / "log.csv").write_bytes(data)
        found = read_log(tmp_path / "log.csv")
        assert (found.pairs, found.reasons) == (PAIRS, {reason: 1})
        assert found.places == [("log.csv", place + 1, None)]

    def test_of_parquet_the_row_is_named(self, tmp_path):
        users = [None if n == 1777 else row.user for n, row in enumerate(ROWS)]
        pq.write_table(table(user_id=users), tmp_path / "log.parquet", row_group_size=500)
        assert read_log(tmp_path / "log.parquet").places == [("log.parquet", None, 1777)]


class TestColumnsOfOtherTypes:
    @pytest.mark.parametrize(
        ("over", "message"),
        [
            (
                {"item_id": pa.array([[row.item] for row in ROWS])},
                r"item_id' is of type list<.*int64",
            ),
            (
                {"item_id": [{"a": row.item} for row in ROWS]},
                r"item_id' is of type struct<a: int64>",
            ),
            (
                {"user_id": pa.array([[("k", 1)] for _ in ROWS], pa.map_("string", "int64"))},
                r"map<",
            ),
        ],
    )
    def test_a_nested_id_is_one_line(self, tmp_path, over, message):
        pq.write_table(table(**over), tmp_path / "log.parquet")
        with pytest.raises(DataError, match=message):
            read_log(tmp_path / "log.parquet")

    @pytest.mark.parametrize("role", ["rating", "event", "timestamp"])
    def test_a_nested_optional_column_is_left_out_unless_asked_for(self, tmp_path, role):
        pq.write_table(table(**{role: [[1]] * len(ROWS)}), tmp_path / "log.parquet")
        found = read_log(tmp_path / "log.parquet")
        assert found.pairs == PAIRS
        assert "is of type list<" in found.left_out[role]
        with pytest.raises(DataError, match=rf"columns.{role}: '{role}' is of type list<"):
            read_log(tmp_path / "log.parquet", f"columns.{role}={role}")

    def test_a_column_that_stands_twice(self, tmp_path):
        for name in ("rating", "item_id"):
            columns = [*table().columns, table()[name]]
            twice = pa.Table.from_arrays(columns, names=[*table().column_names, name])
            pq.write_table(twice, tmp_path / f"{name}.parquet")
        with pytest.raises(
            DataError,
            match=r"'rating' stands 2 times in rating.parquet .*columns.rating=",
        ):
            read_log(tmp_path / "rating.parquet")
        found = read_log(tmp_path / "rating.parquet", "columns.rating=")
        assert found.pairs == PAIRS
        assert found.left_out == {"rating": "switched off"}
        with pytest.raises(
            DataError, match=r"'item_id' stands 2 times in item_id.parquet \(type int"
        ):
            read_log(tmp_path / "item_id.parquet")
        lines = ["user_id,item_id,user_id", "1,2,3"]
        with pytest.raises(DataError, match=r"'user_id' stands 2 times in log.csv"):
            read_log(write_lines(tmp_path / "log.csv", lines))


class TestPartsOfOneLog:
    def test_ids_change_their_type(self, tmp_path):
        pq.write_table(table(ROWS[:HALF]), tmp_path / "01.parquet")
        users = [None if n == 3 else float(row.user) for n, row in enumerate(ROWS[HALF:])]
        pq.write_table(table(ROWS[HALF:], user_id=users), tmp_path / "02.parquet")
        found = read_log(tmp_path)
        assert found.places == [("02.parquet", None, 3)]
        assert found.pairs == sorted(pairs_of([r for n, r in enumerate(ROWS) if n != HALF + 3]))

    def test_ids_and_times_change_their_form(self, tmp_path):
        pq.write_table(table(ROWS[:HALF]), tmp_path / "01.parquet")
        moments = [datetime.datetime.fromtimestamp(r.time, datetime.UTC) for r in ROWS[HALF:]]
        texts = pa.array([str(row.user) for row in ROWS[HALF:]], pa.large_string())
        other = table(ROWS[HALF:], user_id=texts, timestamp=moments, rating=None)
        pq.write_table(other, tmp_path / "02.parquet")
        found = read_log(tmp_path)
        assert (found.pairs, found.of(3)) == (PAIRS, TIMES)
        assert found.of(2)[None] == len(ROWS) - HALF

    def test_a_later_month_has_another_column(self, tmp_path):
        (tmp_path / "p").mkdir()
        pq.write_table(table(ROWS[:HALF]), tmp_path / "p" / "01.parquet")
        events = ["buy"] * (len(ROWS) - HALF)
        pq.write_table(table(ROWS[HALF:], event=events, x=events), tmp_path / "p" / "02.parquet")
        found = read_log(tmp_path / "p")
        assert (found.pairs, found.left_out) == (PAIRS, {"x": "not asked for"})
        assert found.of(4) == {None: HALF, "buy": len(ROWS) - HALF}
        write_lines(tmp_path / "c" / "0.csv", delimited(",", ROWS[:HALF]))
        turned = ["event,timestamp,item_id,user_id"]
        turned += [f"buy,{row.time},{row.item},{row.user}" for row in ROWS[HALF:]]
        write_lines(tmp_path / "c" / "1.csv", turned)
        found = read_log(tmp_path / "c")
        assert (found.pairs, found.of(3)) == (PAIRS, TIMES)
        assert found.of(4) == {None: HALF, "buy": len(ROWS) - HALF}

    def test_folders_name_columns(self, tmp_path):
        names = {"event=view": ROWS[:500], "event=add%20to%2Fcart": ROWS[500:HALF]}
        names["event=__HIVE_DEFAULT_PARTITION__"] = ROWS[HALF:]
        for name, rows in names.items():
            (tmp_path / "hive" / "day=1" / name).mkdir(parents=True)
            pq.write_table(
                table(rows, rating=None), tmp_path / "hive" / "day=1" / name / "p.parquet"
            )
        found = read_log(tmp_path / "hive")
        counts = {"view": 500, "add to/cart": HALF - 500, None: len(ROWS) - HALF}
        assert (found.pairs, found.of(4)) == (PAIRS, counts)
        assert found.left_out == {"day": "not asked for"}
        found = read_log(f"{tmp_path}/hive/*/*/p.parquet", "columns.event=day")
        assert found.of(4) == {"1": len(ROWS)}

    @pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
    def test_folders_of_text_files_and_a_column_of_the_same_name(self, tmp_path, name):
        def lines(rows, **more):
            if "json" in name:
                return [json_line(row, **more) for row in rows]
            head = ",".join(["user_id,item_id,timestamp", *more])
            return [
                head,
                *(",".join(map(str, [r.user, r.item, r.time, *more.values()])) for r in rows),
            ]

        write_lines(tmp_path / "event=view" / name, lines(ROWS[:HALF]))
        write_lines(tmp_path / "event=buy" / name, lines(ROWS[HALF:], event="own"))
        found = read_log(tmp_path)
        assert found.pairs == PAIRS
        assert found.of(4) == {"view": HALF, "own": len(ROWS) - HALF}


AWKWARD = ["sp ace.csv", "a#b.csv", "a%20b.csv", "a+b&c.csv", "ü€.csv", "a[1].csv", "a?b=c.csv"]


class TestNamesInUris:
    @pytest.mark.parametrize("name", AWKWARD)
    def test_of_local_files(self, tmp_path, name):
        path = write_lines(tmp_path / "sp ace" / name, delimited(","))
        uri = f"file://{quote(str(path))}"
        for source in (path, uri, tmp_path / "sp ace", f"file://{quote(str(path.parent))}"):
            assert read_log(source).pairs == PAIRS

    def test_of_objects(self, s3_bucket):
        filesystem, root = open_filesystem(s3_bucket)
        data = "".join(line + "\n" for line in delimited(",")).encode()
        for name in AWKWARD:
            with filesystem.open_output_stream(f"{root}/odd names/{name}") as out:
                out.write(data)
        files = list_files(f"{s3_bucket}/odd names")
        assert [file.name for file in files] == sorted(AWKWARD)
        found = read_log(f"{s3_bucket}/odd names")
        assert len(found.rows) == len(AWKWARD) * len(ROWS)
        assert read_log(f"{s3_bucket}/odd%20names/a#b.csv").pairs == PAIRS
        assert [f.name for f in list_files(f"{s3_bucket}/odd names/a*.csv")] == sorted(
            name for name in AWKWARD if name.startswith("a")
        )


NAMES = "columns.names=[user_id,item_id,rating,timestamp]"
SHAPES = {
    "ratings.dat": ("::", "", ["format.kind=csv", "format.separator=::", NAMES]),
    "udata.tsv": ("\t", "", [NAMES]),
    "pipes.txt": ("|", "", ["format.kind=csv", "format.separator=|", NAMES]),
    "blanks.txt": (" ", "", ["format.kind=csv", "format.separator= ", NAMES]),
    "plain.csv": (",", "", [NAMES]),
    "tabs.csv": ("\t", "userId\tmovieId\tscore\ttime", None),
    "semi.csv": (";", '"User-ID";"ISBN";"Book-Rating";Date', None),
    "u.data": ("\t", "", ["format.kind=csv", "format.separator=\\t", NAMES]),
}


class TestShapesThatNeedKeys:
    @pytest.mark.parametrize("name", SHAPES)
    def test_the_error_names_the_keys_and_they_work(self, tmp_path, name):
        separator, header, expected = SHAPES[name]
        lines = [header] if header else []
        lines += [separator.join(map(str, row)) for row in ROWS]
        path = write_lines(tmp_path / name, lines)
        keys = proposed_keys(path)
        assert expected is None or keys == expected
        found = read_log(path, *keys)
        assert (found.pairs, found.of(2), found.of(3)) == (PAIRS, RATINGS, TIMES)

    def test_a_shop_that_writes_latin_1(self, tmp_path):
        lines = ["KundeNr;Größe;Artikel", *(f"{row.user};groß;ä{row.item}" for row in ROWS)]
        path = write_lines(tmp_path / "log.csv", lines, encoding="latin-1")
        assert proposed_keys(path) == ["format.separator=;", "format.encoding=latin-1"]
        keys = [*proposed_keys(path), "columns.user=KundeNr", "columns.item=Artikel"]
        found = read_log(path, *keys)
        assert found.pairs == sorted((user, f"ä{item}") for user, item in PAIRS)
        wrong = read_log(path, "format.separator=;", "columns.user=KundeNr", "columns.item=Artikel")
        assert wrong.reasons == {"not UTF-8 text": len(ROWS)}

    def test_typed_headers(self, tmp_path):
        lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
        lines += ["\t".join(map(str, row)) for row in ROWS]
        for name in ("toy.inter", "toy.inter.gz"):
            write_lines(tmp_path / "toy.inter", lines)
            if name.endswith(".gz"):
                data = (tmp_path / "toy.inter").read_bytes()
                (tmp_path / name).write_bytes(gzip.compress(data))
            found = read_log(tmp_path / name)
            assert (found.pairs, found.of(2), found.of(3)) == (PAIRS, RATINGS, TIMES)

    def test_escapes_of_a_dump(self, tmp_path):
        note = '"say \\"hi\\", ok"'
        lines = delimited(",", note=lambda n: "\\N" if n % 2 else note)
        path = write_lines(tmp_path / "log.csv", lines)
        assert read_log(path).reasons[FIELDS] == len(ROWS) // 2
        found = read_log(path, "format.escape=\\", "columns.event=note")
        assert found.pairs == PAIRS
        assert found.of(4) == {'say "hi", ok': len(ROWS) // 2, None: len(ROWS) // 2}

    def test_names_replace_a_header(self, tmp_path):
        lines = ["a,b,c,d", *(",".join(map(str, row)) for row in ROWS)]
        path = write_lines(tmp_path / "log.csv", lines)
        found = read_log(path, NAMES, "format.header=true")
        assert (found.pairs, found.reasons) == (PAIRS, Counter())
        with pytest.raises(ConfigError, match=r"has 2 names, the header of .* has 4: a, b, c, d"):
            read_log(path, "columns.names=[user_id,item_id]", "format.header=true")

    def test_columns_by_number_without_header_and_names(self, tmp_path):
        path = write_lines(tmp_path / "log.csv", (",".join(map(str, row)) for row in ROWS))
        keys = ["format.header=false", "columns.user=1", "columns.item=2", "columns.timestamp=4"]
        found = read_log(path, *keys)
        assert (found.pairs, found.of(3)) == (PAIRS, TIMES)
        assert found.left_out == {"3": "not asked for"}

    def test_settings_that_mean_nothing_are_refused(self, tmp_path):
        pq.write_table(table(), tmp_path / "log.parquet")
        with pytest.raises(ConfigError, match=r"format.separator=';' means nothing .* parquet"):
            read_log(tmp_path / "log.parquet", "format.separator=;")
        with pytest.raises(ConfigError, match=r"format.encoding='utf-99' is not accepted"):
            read_log(tmp_path / "log.parquet", "format.encoding=utf-99")
        (tmp_path / "log.json").write_text(json.dumps([{"user_id": 1}]))
        with pytest.raises(ConfigError, match="looks like one JSON array"):
            read_log(tmp_path / "log.json")


def proposed_keys(path, *settings):
    """Return the words after `try` in the error that reading a log raises."""
    with pytest.raises((ConfigError, DataError)) as caught:
        read_log(path, *settings)
    assert "\n" not in str(caught.value)
    return shlex.split(str(caught.value).partition("; try ")[2])
