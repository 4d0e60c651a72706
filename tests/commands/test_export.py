"""A served set moves between storages, whole, or does not appear."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raysys.cli import main
from raysys.commands.export import ExportConfig, export
from raysys.commands.update import UpdateConfig, update
from raysys.config import load
from raysys.errors import BuildError, ConfigError, CorruptBuildError
from raysys.search.query import RecommendQuery
from raysys.search.search import Search
from raysys.store.builds import Workspace
from tests.support.runs import model_run, user_id, vectors_run


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def lists(workspace):
    query = RecommendQuery(user_id=user_id(5), k=10)
    return [(hit.item_id, hit.score) for hit in Search.open(workspace).recommend(query).items]


def moved(run, to, *words):
    return export(load(ExportConfig, [f"run={run}", f"to={to}", *words]))


def test_there_and_back_answers_are_the_same(s3_bucket, tmp_path):
    ws = model_run(tmp_path / "run")[0]
    before = lists(ws)
    there, back = f"{s3_bucket}/{tmp_path.name}/copy", tmp_path / "back"
    first = moved(ws.run, there)
    assert len(first.extra["copied"]) == len(first.build_ids) == 6
    assert moved(ws.run, there).extra["copied"] == []
    assert moved(there, back).build_ids == first.build_ids
    assert lists(Workspace(there)) == lists(Workspace(str(back))) == before
    for kind, build_id in first.build_ids.items():
        assert Workspace(str(back)).current(kind).state() == ws.open(kind, build_id).state()


def test_changes_of_items_come_along(tmp_path):
    ws, _ = vectors_run(tmp_path / "run")
    update(UpdateConfig(run=ws.run, delete=["item-7"]))
    assert "changes" in moved(ws.run, tmp_path / "copy").build_ids
    found = Search.open(Workspace(str(tmp_path / "copy"))).similar("item-5", top_k=60)
    assert "item-7" not in [hit.item_id for hit in found]


KILLED = """
import os, signal, sys
from raysys.store.storage import Storage
from raysys.commands.export import ExportConfig, export
count, rename = int(sys.argv[3]), Storage.rename
def counted(self, *names):
    global count
    count -= 1
    if count < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(self, *names)
Storage.rename = counted
export(ExportConfig(run=sys.argv[1], to=sys.argv[2]))
"""


def test_one_that_is_killed_shows_nothing_and_goes_on(tmp_path):
    ws, _ = vectors_run(tmp_path / "run")
    to = str(tmp_path / "copy")
    words = [sys.executable, "-c", KILLED, ws.run, to, "2"]
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run(words, cwd=root).returncode == -signal.SIGKILL
    assert not Workspace(to).has("index")
    done = moved(ws.run, to)
    assert len(done.extra["copied"]) == len(done.build_ids) - 2
    assert not any(name.startswith(".") for name in os.listdir(f"{to}/codes"))


def test_a_damaged_file_is_named_and_nothing_appears(tmp_path):
    ws, _ = vectors_run(tmp_path / "run")
    path = ws.current("codes").path("scale.npy")
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(CorruptBuildError, match=r"scale\.npy does not have the hash"):
        moved(ws.run, tmp_path / "copy")
    assert not Workspace(str(tmp_path / "copy")).has("index")


def test_wrong_settings_are_one_line(tmp_path, capfd):
    ws, _ = vectors_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="to="):
        moved(ws.run, f"{ws.run}/")
    with pytest.raises(BuildError, match="holds no index build nosuch"):
        moved(ws.run, tmp_path / "copy", "build_id=nosuch")
    capfd.readouterr()
    assert main(["export", f"run={ws.run}", "to=/proc/none"]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if " INFO " not in line]
    assert [" ERROR cannot write " in line for line in lines] == [True]
