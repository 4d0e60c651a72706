"""The serve suite, small: real servers, real processes killed."""

import json

import pytest

from raysys.bench.serve import ServeBenchConfig, rows
from raysys.config import load
from raysys.errors import ConfigError
from tests.support.runs import model_run


@pytest.fixture
def run(tmp_path):
    model_run(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
def test_the_same_app_behind_each_server(run, monkeypatch):
    servers = ("uvicorn",)  # the others start below
    monkeypatch.setattr("raysys.bench.serve.SERVERS", servers)
    words = [f"run={run}", "suite=serve", "connections=[2]", "seconds=0.3", "events=false"]
    found = rows(load(ServeBenchConfig, words))
    asked = [(row["server"], row["connections"], row["batch"]) for row in found]
    assert asked == [pair for name in servers for pair in ((name, 2, 1), (name, 1, 100))]
    assert all(row["failed"] == 0 for row in found)
    assert all(row["per_second"] > 10 for row in found)
    assert not (run / "changes").exists()


@pytest.mark.slow  # on ports of its own, so beside other clusters
def test_events_are_seen_by_clients(run, monkeypatch):
    monkeypatch.setattr("raysys.bench.serve.SERVERS", ())
    monkeypatch.setattr("raysys.bench.serve._REST_S", 0.5)
    monkeypatch.setattr("raysys.bench.serve._SWAP_S", 1.5)
    tries = 9
    monkeypatch.setattr("raysys.bench.serve.TRIED", (tries,))
    words = [f"run={run}", "suite=serve", "seconds=1", "swaps=2"]
    found = rows(load(ServeBenchConfig, words))
    events = {(row["event"], row.get("retries")): row for row in found}
    killed = ("replica killed", "proxy killed", "second proxy killed")
    names = ("quiet", "swaps", "redeploy", *killed, "damaged build")
    assert set(events) == {("capacity", None), *((name, tries) for name in names)}
    for name in names:
        assert json.loads(events[name, tries]["errors"]) == {}
    assert events["swaps", tries]["event_s"] > 2
    assert not (run / "changes").exists()


@pytest.mark.parametrize("word", ["connections=[]", "connections=[0]", "seconds=0", "swaps=0"])
def test_settings_that_cannot_be_used(word):
    with pytest.raises(ConfigError, match=word.split("=")[0]):
        load(ServeBenchConfig, ["suite=serve", word])
