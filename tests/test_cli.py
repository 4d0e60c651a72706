import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raysys import cli
from raysys.config import JobConfig
from raysys.errors import DataError
from raysys.store.builds import StageResult

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass
class PlantedConfig(JobConfig):
    """Settings of the planted command."""

    fail: str = ""


def planted(cfg):
    os.write(1, b"noise of a library\n")
    if cfg.fail == "data":
        raise DataError("row 3 of\nlog.csv is bad")
    if cfg.fail == "storage":
        raise DataError(f"cannot open {cfg.run}")
    if cfg.fail == "bug":
        raise ZeroDivisionError("a bug")
    return StageResult(build_ids={"codes": "c0"}, metrics={}, extra={"title": "Amélie"})


@pytest.fixture
def command(monkeypatch):
    entry = cli.Command(__name__, "PlantedConfig", "planted", "planted")
    monkeypatch.setitem(cli.COMMANDS, "planted", entry)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])


def test_stdout_carries_one_line_of_json(command, capfd):
    assert cli.main(["planted", "run=r"]) == 0
    out, err = capfd.readouterr()
    record = json.loads(out)
    assert out.count("\n") == 1
    assert record["job"] == "planted"
    assert record["run"] == str(Path.cwd() / "r")
    assert record["build_ids"] == {"codes": "c0"}
    assert record["title"] == "Amélie"
    assert record["seconds"] >= 0
    assert "noise" in err


def test_an_error_for_users_is_one_line_and_status_2(command, capfd):
    assert cli.main(["planted", "fail=data"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "row 3 of log.csv is bad" in err
    assert "Traceback" not in err


def test_a_bug_is_a_traceback_and_status_1(command, capfd):
    assert cli.main(["planted", "fail=bug"]) == 1
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["planted", "fial=x"], ["plant"], ["planted", "--verbose"], ["planted", "--config"]],
)
def test_misuse_is_status_2(command, words, capfd):
    assert cli.main(words) == 2
    assert "Traceback" not in capfd.readouterr().err


def test_the_last_suite_counts(monkeypatch):
    _, schema = cli.resolve("bench", ["suite=nonsense", "seed=3", "suite=retrieval"])
    assert schema.__name__ == "RetrievalBenchConfig"


def test_help_lists_keys_and_defaults(command, capfd):
    assert cli.main(["planted", "--help"]) == 0
    assert "seed=0" in capfd.readouterr().out
    assert cli.main(["--help"]) == 0
    assert "pipeline" in capfd.readouterr().out


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_resolves(name):
    suites = ["suite=retrieval"] if name == "bench" else []
    function, schema = cli.resolve(name, suites)
    assert callable(function)
    assert issubclass(schema, JobConfig)


def test_jobs_run_from_any_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "train.py"), "rum=x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "unknown key 'rum'; did you mean 'run'" in done.stderr
    assert done.stdout == ""


def test_a_second_word_that_is_no_command_is_named(capsys):
    assert cli.main(["serve", "stats"]) == 2
    assert (
        "unknown command 'serve stats': expected one of serve, serve status"
        in capsys.readouterr().err
    )


def test_users_and_passwords_of_addresses_are_not_shown(command, capfd):
    run = "run=s3://me:hush@bucket/r?region=eu"
    assert cli.main(["planted", run, "fail=storage"]) == 2
    assert cli.main(["planted", run]) == 0
    out, err = capfd.readouterr()
    assert "cannot open s3://bucket/r?region=eu" in err
    assert "hush" not in out + err
