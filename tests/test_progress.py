import json
import logging
import re
import signal
import subprocess
import sys
import termios
import time
from contextlib import redirect_stderr

import pytest

from raysys import cli, progress
from raysys.errors import ConfigError
from tests.support import counting
from tests.support.terminal import ROOT, Terminal, screen, start

COUNTING = "tests.support.counting"
LOGGED = re.compile(r"\d\d:\d\d:\d\d (INFO|ERROR) ")


@pytest.fixture
def run(capfd, monkeypatch):
    """Count on a terminal; return (exit status, standard output, all that the terminal got)."""
    monkeypatch.setitem(cli.COMMANDS, "count", counting.COMMAND)
    monkeypatch.setenv("TERM", "xterm")

    def call(*words, columns=100):
        terminal = Terminal(columns=columns)
        with terminal.stream() as stderr, redirect_stderr(stderr):
            status = cli.main(["count", "run=r", *words])
        return status, capfd.readouterr().out, terminal.close()

    return call


def stages(shown):
    """Return the names of the live lines, in order."""
    names = [line.split()[0] for line in shown.drawn if re.match(r"(count|inner)\b", line)]
    return [name for number, name in enumerate(names) if names[number - 1 : number] != [name]]


def test_a_terminal_shows_one_live_line_and_keeps_log_lines_whole(run):
    status, stdout, text = run()
    shown = screen(text, columns=100)
    assert status == 0
    assert json.loads(stdout)["steps"] == 20
    assert stdout.count("\n") == 1
    assert "\x1b" not in text
    assert stages(shown) == ["count", "inner", "count"]
    assert any(re.match(r"count +\d+% .* left, \d.* rows, .* rows/s", x) for x in shown.drawn)
    assert any(re.match(r"inner [123] rounds, 00:0\d, best [012]$", x) for x in shown.drawn)
    logged = [line for line in shown.lines if LOGGED.match(line)]
    assert [LOGGED.sub("", line).split()[0] for line in logged] == ["half", "inner", "count"]
    assert "count tasks=20/20 rows=20000 rows_per_s=" in logged[2]
    others = [line for line in shown.lines if line and not LOGGED.match(line)]
    assert others == ["a warning of a library", "noise"]
    assert shown.wraps == 0


def test_no_live_line_wraps_on_a_narrow_terminal(run):
    status, _, text = run(columns=40)
    live = [part for part in re.split("[\r\n]+", text) if re.match(r"(count|inner) ", part)]
    assert status == 0
    assert len(live) > 5
    assert max(map(len, live)) < 40
    assert stages(screen(text, columns=40)) == ["count", "inner", "count"]


def test_the_fields_that_matter_least_leave_first():
    stage = progress.Stage("fit", "epochs", 20, done=5, rows=4000, note="best nll 1.5 at 3")
    lines = [progress.live_line(stage, columns) for columns in (100, 55, 40, 12)]
    assert re.match(r"fit  25% \|█+. +\| 5/20 epochs, 00:00 left, best nll .*rows/s$", lines[0])
    assert lines[1].startswith("fit  25% ")
    assert lines[1].endswith("5/20 epochs, 00:00 left, best nll 1.5 at 3")
    assert lines[2] == "fit  25% 5/20 epochs, 00:00 left"
    assert lines[3] == "fit  25%"
    assert all(len(line) <= width for line, width in zip(lines, (100, 55, 40, 12), strict=True))


@pytest.mark.parametrize("text", ["{x}", "{", "}", "{0}", "{bar}", "{desc}: {n}"])
def test_names_and_notes_may_hold_braces(text):
    stage = progress.Stage(f"fit {text}", "epochs", 20, done=5, note=f"best {text}")
    line = progress.live_line(stage, 100)
    assert line.startswith(f"fit {text}  25% |█")
    assert line.endswith(f"left, best {text}")


def test_time_left_counts_what_this_run_did():
    stage = progress.Stage("fit", "epochs", 20, started=time.perf_counter() - 60)
    stage.skip(10)
    assert "01:00, " not in progress.live_line(stage, 200)
    stage.add(5)
    assert "15/20 epochs, 01:00 left" in progress.live_line(stage, 200)


@pytest.mark.parametrize(
    ("fail", "status", "last"),
    [("data", 2, "ERROR row 3 is bad"), ("bug", 1, "ZeroDivisionError: a bug")],
)
def test_an_error_leaves_no_live_line(run, fail, status, last):
    found, stdout, text = run(f"fail={fail}")
    lines = [line for line in screen(text, columns=100).lines if line]
    assert found == status
    assert stdout == ""
    assert not [line for line in lines if line.startswith(("count ", "inner "))]
    assert not [line for line in lines if "INFO count tasks" in line]
    assert lines[-1].endswith(last)


@pytest.mark.parametrize(
    ("number", "status", "last"), [(signal.SIGINT, 130, "INFO"), (signal.SIGTERM, 143, "WARNING")]
)
def test_the_clock_goes_on_and_an_interrupt_leaves_a_clean_terminal(number, status, last):
    terminal = Terminal(columns=100)
    process = start(["count", "run=r", "fail=wait"], terminal=terminal, module=COUNTING)
    while "wait 00:02" not in terminal.so_far:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    stdout = process.communicate(timeout=60)[0]
    assert termios.tcgetattr(terminal.writer) == terminal.modes
    shown = screen(terminal.close(), columns=100)
    assert process.returncode == status
    assert stdout == ""
    lines = [line for line in shown.lines if line]
    assert shown.lines[-1] == ""
    assert lines[-1].split()[1] == last  # INFO is the stage that ended before
    assert not [line for line in shown.lines if line.startswith(("count ", "inner ", "wait "))]


@pytest.mark.parametrize(("fail", "status"), [("interrupted", 130), ("stopped", 0)])
def test_an_interrupt_within_an_exec_leaves_the_status(fail, status):
    words = [sys.executable, "-m", COUNTING, "count", "run=r", "steps=1", f"fail={fail}"]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == status, ended.stderr
    assert bool(ended.stdout) == (status == 0)


def test_a_killed_job_leaves_a_terminal_that_needs_no_repair():
    terminal = Terminal(columns=100)
    process = start(["count", "run=r", "fail=killed"], terminal=terminal, module=COUNTING)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert termios.tcgetattr(terminal.writer) == terminal.modes
    text = terminal.close()
    assert "count 100%" in text
    assert "\x1b" not in text


def test_off_shows_no_stage(run):
    status, stdout, text = run("progress=off")
    assert status == 0
    assert json.loads(stdout.splitlines()[-1])["steps"] == 20
    assert not re.search("count|inner|round", text)
    assert "half way" in text


def test_log_writes_lines_also_on_a_terminal(run):
    _, _, text = run("progress=log")
    lines = [LOGGED.sub("", line).split()[:2] for line in text.splitlines() if LOGGED.match(line)]
    assert [" ".join(words) for words in lines] == [
        "half way",
        *(f"round number={number}" for number in range(3)),
        "inner rounds=3",
        "count tasks=20/20",
    ]
    assert "\r" not in text.replace("\r\n", "\n")


def test_off_a_terminal_auto_writes_lines_and_bar_draws(capfd):
    for mode, returns in (("auto", 0), ("bar", 3)):  # it begins, it ends
        with progress.shown(mode), progress.stage("count", unit="rows"):
            pass
        assert capfd.readouterr().err.count("\r") == returns


def test_long_stages_log_every_few_seconds(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("raysys"), "handlers", [])
    monkeypatch.setattr(logging.getLogger("raysys"), "propagate", True)
    caplog.set_level(logging.INFO, "raysys")
    monkeypatch.setattr(progress, "_LOG_EVERY_S", 0.0)
    with progress.shown("log"), progress.stage("count", total=2, unit="rows") as work:
        work.add()
        work.add()
        with progress.stage("within", lines=progress.NONE) as inner:
            inner.add()
    found = [line.split(" rows_per_s")[0] for line in caplog.messages]
    assert found == ["count rows=1/2", "count rows=2/2"]


def test_an_unknown_mode_is_refused():
    says = "progress='loud' is not accepted: expected auto, bar, log, off"
    with pytest.raises(ConfigError, match=says), progress.shown("loud"):
        pass


@pytest.mark.ray
@pytest.mark.slow
def test_a_pipeline_shows_a_live_line_per_stage(ray_cluster, small_log, tmp_path):
    import ray

    address = f"ray.address={ray.get_runtime_context().gcs_address}"
    small = ["train.optim.epochs=2", "train.autoencoder.latent=16", "evaluate.baselines=[]"]
    words = ["pipeline", f"run={tmp_path / 'run'}", f"source={small_log}", address, *small]
    terminal = Terminal(columns=100)
    process = start(words, terminal=terminal)
    try:
        stdout = process.communicate(timeout=500)[0]
    finally:
        process.kill()
    assert termios.tcgetattr(terminal.writer) == terminal.modes
    text = terminal.close()
    shown = screen(text, columns=100)
    assert process.returncode == 0, text[-3000:]
    assert json.loads(stdout)["job"] == "pipeline"
    assert stdout.count("\n") == 1
    assert "\x1b" not in re.sub(r"\x1b\[\d+m\(raylet\).*", "", text)  # Ray's own warnings
    live = [
        "prepare read",
        "train workers",
        "closed form",
        "fit",
        "refit",
        "rank model",
        "rank index",
    ]
    for name in live:
        assert any(re.match(rf"{name} +(\d+%|\d\d:\d\d)", line) for line in shown.drawn), name
    assert not [line for line in shown.lines if re.match("|".join(live), line)]
    assert any(re.match(r"fit 100% .*2/2 epochs, .*best recall@20", line) for line in shown.drawn)
    left = [LOGGED.sub("", line) for line in shown.lines if LOGGED.match(line)]
    assert len([line for line in left if line.startswith("fit epochs=2/2 rows=")]) == 1
    assert not [line for line in left if line.startswith("trained ")]
