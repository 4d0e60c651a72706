"""Figures are data: pages and plots equal what `benchmarks/render.py` makes of the records."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import matplotlib
import pytest

from benchmarks import render
from benchmarks.charts import charts
from benchmarks.sections import SECTIONS, tables_of
from raysys.bench.loop_plot import CONDITIONS
from raysys.bench.records import Machine, Record
from raysys.bench.suites import SUITES
from raysys.errors import DataError
from raysys.reports.plots import draw, drawn_from, fingerprint
from tests.support.wheels import ROOT

RESULTS = ROOT / "benchmarks" / "results"
PATHS = sorted(RESULTS.glob("*.json"))
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?%?")

every_record = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


@pytest.fixture(scope="module")
def records():
    return render.read(RESULTS)


@pytest.fixture
def site(tmp_path):
    """Return a copy of README and benchmarks."""
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def add(site, record, name="new"):
    (site / "benchmarks" / "results" / f"{name}.json").write_text(record.text())


def record_of(suite, date, rows):
    machine = Machine("a processor", 4, 16, None, 0.5)
    commit = "0123456789abcdef"
    return Record("bench", suite, date, machine, commit, True, {"a": "1"}, {}, "x", [], rows)


def numbers_of(value):
    """Return all numbers that a record's rows and setting hold, those in their text too."""
    if isinstance(value, dict):
        return [n for key, each in value.items() for n in [*numbers_of(key), *numbers_of(each)]]
    if isinstance(value, list):
        return [n for each in value for n in numbers_of(each)]
    if isinstance(value, str):
        return [float(text.rstrip("%").replace(",", "")) for text in NUMBER.findall(value)]
    return [float(value)] if isinstance(value, (int, float)) else []


def is_known(text, known):
    """Return whether a written number is one of the known ones, rounded as it is written."""
    share = 100 if text.endswith("%") else 1
    digits = text.rstrip("%").replace(",", "")
    places = len(digits.partition(".")[2])
    return any(abs(share * value - float(digits)) <= 0.5001 * 10**-places for value in known)


def test_pages_and_plots_are_what_the_records_make():
    assert render.differences(ROOT) == []


def test_plots_have_the_bytes_that_this_matplotlib_draws(records, tmp_path):
    for suite, panels in charts(records).items():
        path = ROOT / "benchmarks" / "plots" / f"{suite}.svg"
        assert drawn_from(path) == fingerprint(panels)
        if f"Matplotlib v{matplotlib.__version__}," in path.read_text():
            draw(panels, tmp_path / path.name)
            assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_every_plot_is_on_the_page(records):
    page = render.page(records)
    plots = {path.name for path in (ROOT / "benchmarks" / "plots").iterdir()}
    assert set(re.findall(r"!\[.+\]\(plots/(\S+)\)", page)) == plots
    assert {"codes.svg", "retrieval.svg", "scale.svg", "recovery.svg"} <= plots
    assert {"train.svg", "prepare.svg"} <= plots


@every_record
def test_a_record_is_named_by_its_suite_machine_and_date(path):
    record = Record.read(path)
    card = (record.machine.gpu or "cpu").lower().replace(" ", "-")
    assert re.fullmatch(rf"{record.suite}-{card}-{record.date}(-\d+)?", path.stem)
    assert record.suite in {section.suite for section in SECTIONS}
    assert record.kind == ("bench" if record.suite in SUITES else "quality")
    assert path.read_text() == record.text()


@every_record
def test_every_row_is_on_the_page(path):
    record = Record.read(path)
    tables = tables_of(record)
    assert all(len(line) == len(cells[0]) for cells in tables for line in cells)
    n_lines = sum(len(cells) - 1 for cells in tables)
    if record.suite == "loop":  # the conditions of a week stand in one line
        weeks = {row["week"] for row in record.rows if row["part"] == "weeks"}
        assert n_lines == len(weeks) + sum(row["part"] != "weeks" for row in record.rows)
        assert len(tables[0][0]) == 2 + 2 * len(CONDITIONS)
    elif record.suite not in ("folds", "agreement"):
        assert n_lines == len(record.rows)


def test_the_block_holds_five_figures_of_the_records(records):
    text = (ROOT / "README.md").read_text()
    block = text.split(render.START)[1].split(render.END)[0]
    lines = [line for line in block.splitlines() if line.startswith("|")][2:]
    assert len(lines) == 5
    known = numbers_of([[record.rows, record.setting] for record in records])
    dates = {record.date for record in records}
    for line in lines:
        what, ours, peer, date = (cell.strip() for cell in line.strip("|").split("|"))
        assert date in dates
        written = NUMBER.findall(f"{ours} {peer}")
        assert len(written) >= 2
        assert [
            text for text in [*written, *NUMBER.findall(what)] if not is_known(text, known)
        ] == []


def test_a_figure_that_no_record_holds_is_noticed():
    known = [0.891, 2575.0]
    assert is_known("89.1%", known)
    assert is_known("2,575", known)
    assert not is_known("89.2%", known)
    assert not is_known("2,576", known)


def test_a_number_typed_by_hand_is_found_and_rendered_away(site, capsys):
    page = site / "benchmarks" / "README.md"
    text = page.read_text()
    page.write_text(text.replace("0.440", "0.441"))
    assert render.main(["--check"], site) == 1
    assert "benchmarks/README.md is not what the records make" in capsys.readouterr().err
    assert render.main([], site) == 0
    assert page.read_text() == text
    assert render.main(["--check"], site) == 0


def test_a_newer_record_reaches_page_plot_and_block(site):
    before = (site / "README.md").read_text()
    old = Record.read(RESULTS / "prepare-cpu-2026-11-25.json")
    rows = [
        row | {"seconds": row["seconds"] / 2, "rows_per_s": 2 * row["rows_per_s"]}
        for row in old.rows
    ]
    add(site, dataclasses.replace(old, date="2027-01-02", rows=rows))
    wrong = render.differences(site)
    assert wrong == ["benchmarks/README.md", "README.md", "benchmarks/plots/prepare.svg"]
    assert render.main([], site) == 0
    assert render.differences(site) == []
    line = next(line for line in (site / "README.md").read_text().splitlines() if "polars" in line)
    assert "25.5 s" in line
    assert "22.2 s" in line
    assert "2027-01-02" in line
    assert line not in before


def test_figures_of_one_line_come_from_one_record(site, records):
    ours = {"engine": "raysys prepare", "rows": 30_000_000, "seconds": 1.0, "rows_per_s": 3e7}
    alone = record_of("prepare", "2027-01-02", [ours | {"seconds_with_ray": 2.0}])
    assert render.block([alone, *records]) == render.block(records)


def test_a_suite_that_the_page_does_not_know_gets_a_section():
    page = render.page([record_of("new", "2027-01-02", [{"engine": "a", "p50_ms": 1.5}])])
    assert "## new" in page
    assert "**2027-01-02**, a processor, 4 cores, 16 GiB, load 0.5." in page
    assert "Commit 012345678 with changes; a 1" in page
    assert page.rstrip().endswith("| engine | p50, ms |\n| --- | --- |\n| a | 1.5 |")


def test_a_plot_that_nothing_asks_for_goes(site):
    stray = site / "benchmarks" / "plots" / "old.svg"
    stray.write_text("<svg/>")
    assert render.differences(site) == ["benchmarks/plots/old.svg"]
    assert render.main([], site) == 0
    assert not stray.exists()


@pytest.mark.parametrize(
    "text",
    [
        "no markers",
        f"{render.START} alone",
        f"{render.END} {render.START}",
        2 * f"{render.START}{render.END}",
    ],
)
def test_a_readme_without_its_block_is_an_error(site, text, capsys):
    (site / "README.md").write_text(text)
    for words in ([], ["--check"]):
        assert render.main(words, site) == 2
        assert (
            "README.md has no block of figures: expected '<!-- figures -->'"
            in capsys.readouterr().err
        )
    assert (site / "README.md").read_text() == text


def test_a_missing_figure_is_an_error(records):
    others = [record for record in records if record.suite != "codes"]
    with pytest.raises(DataError, match="no record of suite codes"):
        render.block(others)


def test_a_broken_record_is_an_error(site, capsys):
    path = site / "benchmarks" / "results" / "x.json"
    path.write_text(json.dumps({"suite": "codes"}))
    assert render.main([], site) == 2
    assert "x.json is no record of measurements" in capsys.readouterr().err


def test_words_that_it_does_not_know_are_refused(site, capsys):
    assert render.main(["--chek"], site) == 2
    assert "expected --check" in capsys.readouterr().err


def test_it_runs_as_a_script(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "render.py", "--check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
