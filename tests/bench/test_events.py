"""The events suite, small: real services, killed for real."""

import pytest

from raysys.bench.events import EventsBenchConfig, rows
from raysys.config import load
from raysys.errors import ConfigError
from raysys.events import fold
from tests.support.runs import model_run


@pytest.mark.slow
def test_events_are_taken_seen_and_not_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(fold, "SETTLED_S", 0.0)
    run = tmp_path / "run"
    model_run(run)
    words = [f"run={run}", "suite=events", "seconds=0.5", "events=3", "kills=1"]
    found = {row["part"]: row for row in rows(load(EventsBenchConfig, words))}
    assert found["taken"]["per_second"] > 1_000
    assert (found["seen"]["events"], found["seen"]["seen_max_s"] > 0) == (3, True)
    assert found["answers"]["few_p50_ms"] > 0
    killed = found["killed"]
    assert (killed["kills"], killed["lost"], killed["doubled"]) == (1, 0, 0)
    assert not (run / "journal").exists()


@pytest.mark.parametrize("word", ["seconds=0", "events=0", "kills=0"])
def test_settings_that_cannot_be_used(word):
    with pytest.raises(ConfigError, match=word.split("=")[0]):
        load(EventsBenchConfig, ["suite=events", word])
