import dataclasses
import json
import re
import subprocess

import pytest

from raysys import cli
from raysys.bench import records, suites
from raysys.bench.records import Record
from raysys.bench.suites import BenchConfig
from raysys.config import location
from raysys.errors import ConfigError, DataError
from raysys.store import manifests

ROWS = [{"engine": "raysys", "p50_ms": 0.5}, {"engine": "peer", "p50_ms": None}]


@dataclasses.dataclass
class PlantedConfig(BenchConfig):
    """Settings of a suite that takes no time."""

    source: str = location()
    sizes: list[int] = dataclasses.field(default_factory=lambda: [1, 2])


def rows(cfg):
    assert cfg.sizes == [3]
    return ROWS


@pytest.fixture
def bench(monkeypatch, capfd):
    """Run a planted suite from the command line; return its status and what it printed."""
    monkeypatch.setitem(suites.SUITES, "planted", (__name__, "PlantedConfig"))

    def run(*words):
        status = cli.main(["bench", "suite=planted", "sizes=[3]", "source=a/b.npy", *words])
        out, err = capfd.readouterr()
        return status, out, err

    return run


def test_a_record_says_where_when_with_what_and_by_which_commit(bench, tmp_path):
    status, out, _ = bench(f"save={tmp_path}", "seed=7")
    assert status == 0
    [path] = tmp_path.iterdir()
    record = Record.read(path)
    assert re.fullmatch(rf"planted-[a-z0-9-]+-{record.date}\.json", path.name)
    assert (record.kind, record.suite, record.source) == ("bench", "planted", "raysys bench")
    assert record.machine.cores >= 1
    assert record.machine.processor
    assert record.machine.memory_gib > 0
    assert record.machine.load >= 0
    assert record.commit == manifests.notes()["git_revision"]
    assert record.dirty == manifests.is_dirty()
    assert record.versions["numpy"]
    assert record.setting == {"seed": 7, "source": "b.npy", "sizes": [3]}
    assert record.rows == ROWS
    printed = json.loads(out)
    assert {key: printed[key] for key in dataclasses.asdict(record)} == dataclasses.asdict(record)


def test_a_folder_takes_a_record_a_run_and_keeps_all(bench, tmp_path):
    for _ in range(3):
        assert bench(f"save={tmp_path / 'new'}")[0] == 0
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    date = Record.read(tmp_path / "new" / names[0]).date
    assert [name.partition(date)[2] for name in names] == ["-2.json", "-3.json", ".json"]


def test_a_file_that_is_there_is_refused_before_anything_runs(bench, tmp_path, monkeypatch):
    path = tmp_path / "mine.json"
    assert bench(f"save={path}")[0] == 0
    before = path.read_text()
    monkeypatch.delitem(globals(), "rows")
    status, _, err = bench(f"save={path}")
    assert status == 2
    assert "exists already" in err
    assert path.read_text() == before


def test_nothing_is_written_over_what_came_during_the_run(bench, tmp_path):
    record = records.begin("planted", PlantedConfig())
    path = records.free_path(str(tmp_path), record)
    path.write_text("of another run")
    with pytest.raises(ConfigError, match="cannot be written"):
        records.write(record, path)
    assert path.read_text() == "of another run"


def test_without_save_nothing_is_written(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert bench()[0] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_cards_name_stands_in_the_files(tmp_path):
    record = records.begin("train", PlantedConfig())
    card = dataclasses.replace(record.machine, gpu="NVIDIA H200 (141 GB)")
    record = dataclasses.replace(record, machine=card, date="2026-11-26")
    path = records.free_path(str(tmp_path), record)
    assert path.name == "train-nvidia-h200-141-gb-2026-11-26.json"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "guess"),
        ("suite", ""),
        ("date", "26.11.2026"),
        ("date", "2026-11-31"),
        ("date", None),
        ("commit", "main"),
        ("source", None),
        ("setting", None),
        ("remarks", "one"),
        ("rows", []),
        ("rows", [1]),
    ],
)
def test_what_a_record_lacks_is_named(tmp_path, field, value):
    record = dataclasses.asdict(records.begin("planted", PlantedConfig())) | {"rows": ROWS}
    path = tmp_path / "x.json"
    path.write_text(json.dumps(record))
    assert Record.read(path).rows == ROWS
    path.write_text(json.dumps(record | {field: value}))
    with pytest.raises(DataError, match=f"see its {field}"):
        Record.read(path)


@pytest.mark.parametrize("missing", [field.name for field in dataclasses.fields(Record)])
def test_every_field_is_required(tmp_path, missing):
    record = dataclasses.asdict(records.begin("planted", PlantedConfig())) | {"rows": ROWS}
    del record[missing]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=missing):
        Record.read(path)


def test_a_checkout_with_changes_is_told_from_a_clean_one(tmp_path, monkeypatch):
    module = tmp_path / "raysys" / "store" / "manifests.py"
    module.parent.mkdir(parents=True)
    module.write_text("one")
    monkeypatch.setattr(manifests, "__file__", str(module))
    assert manifests.is_dirty() is None
    for words in (["init"], ["add", "."], ["commit", "-m", "one"]):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "record.json").write_text("untracked")
    assert manifests.is_dirty() is False
    module.write_text("two")
    assert manifests.is_dirty() is True
