"""The command line: `raysys <command> [--config file.yaml] key=value ...`.

Progress goes to stderr (see `progress`); stdout carries one line of JSON at the end (readable text
for `query` and `atoms`).
Exit status: 0 success, 2 a RaysysError (one line, no traceback), 1 anything else, 130 interrupted,
143 ended by SIGTERM.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn, TextIO

from raysys import progress, reference, tracking
from raysys.config import JobConfig, load, read_yaml
from raysys.errors import ConfigError, find_cause, without_keys
from raysys.store import uses
from raysys.store.builds import StageResult

log = logging.getLogger("raysys.cli")

# Commands that only look at builds, or whose other processes say what they use.
_BRIEF = {"atoms", "builds", "doctor", "gc", "load", "look", "query", "report", "serve"}


@dataclasses.dataclass(frozen=True)
class Command:
    """Where a command lives: `module.function(module.config)`."""

    module: str
    config: str
    function: str
    summary: str


COMMANDS = {
    "simulate": Command(
        "raysys.commands.simulate", "SimulateConfig", "simulate", "write a log with a known truth"
    ),
    "look": Command(
        "raysys.commands.look", "LookConfig", "look", "what prepare would read of a log"
    ),
    "prepare": Command(
        "raysys.commands.prepare", "PrepareConfig", "prepare", "raw logs -> interactions, profiles"
    ),
    "train": Command(
        "raysys.commands.train", "TrainConfig", "train", "profiles -> models, embeddings, codes"
    ),
    "index": Command("raysys.commands.index", "IndexConfig", "index", "codes -> search index"),
    "evaluate": Command(
        "raysys.commands.evaluate", "EvaluateConfig", "evaluate", "metrics of the current builds"
    ),
    "backtest": Command(
        "raysys.commands.backtest",
        "BacktestConfig",
        "backtest",
        "train and evaluate the settings on windows of the past",
    ),
    "score": Command(
        "raysys.commands.score", "ScoreConfig", "score", "top lists of all users to Parquet"
    ),
    "tune": Command("raysys.commands.tune_run", "TuneConfig", "tune", "sweep over settings"),
    "tune start": Command(
        "raysys.commands.tune_run", "TuneConfig", "tune", "begin a sweep, or go on with it"
    ),
    "tune status": Command(
        "raysys.commands.tune_verbs", "SweepConfig", "status", "how a sweep stands"
    ),
    "tune pause": Command(
        "raysys.commands.tune_verbs", "SweepConfig", "pause", "begin no further trial"
    ),
    "tune stop": Command("raysys.commands.tune_verbs", "SweepConfig", "stop", "end a sweep now"),
    "tune resume": Command(
        "raysys.commands.tune_verbs", "ResumeConfig", "resume", "go on where a sweep was left"
    ),
    "tune report": Command(
        "raysys.commands.tune_verbs", "SweepConfig", "report", "the page of a sweep"
    ),
    "tune add": Command("raysys.commands.tune_verbs", "AddConfig", "add", "more trials"),
    "bench": Command("raysys.bench.suites", "BenchConfig", "bench", "measure against peers"),
    "doctor": Command(
        "raysys.commands.doctor", "DoctorConfig", "doctor", "check versions, cluster, storage, data"
    ),
    "pipeline": Command(
        "raysys.commands.pipeline", "PipelineConfig", "pipeline", "prepare, train, index, evaluate"
    ),
    "refresh": Command(
        "raysys.commands.refresh", "RefreshConfig", "refresh", "new logs -> retrain, judge, publish"
    ),
    "refresh status": Command(
        "raysys.commands.refresh_verbs", "RefreshesConfig", "status", "what refreshes decided"
    ),
    "refresh rollback": Command(
        "raysys.commands.refresh_verbs", "RefreshesConfig", "rollback", "take the last one back"
    ),
    "compare": Command(
        "raysys.commands.compare", "CompareConfig", "compare", "paired difference of two runs"
    ),
    "report": Command(
        "raysys.commands.report", "ReportConfig", "report", "one page of what a run holds"
    ),
    "builds": Command(
        "raysys.commands.builds", "BuildsConfig", "builds", "what a run holds, and what keeps it"
    ),
    "gc": Command("raysys.commands.gc", "GcConfig", "gc", "remove what no one needs"),
    "export": Command(
        "raysys.commands.export", "ExportConfig", "export", "a served set, to another storage"
    ),
    "forget": Command(
        "raysys.commands.forget", "ForgetConfig", "forget", "take users out of all that a run holds"
    ),
    "query": Command(
        "raysys.commands.query", "QueryConfig", "query", "ask the index from the shell"
    ),
    "update": Command(
        "raysys.commands.update", "UpdateConfig", "update", "upsert and delete items between builds"
    ),
    "atoms": Command(
        "raysys.commands.atoms", "AtomsConfig", "atoms", "what the atoms of the codes stand for"
    ),
    "serve": Command("raysys.commands.serve", "ServeConfig", "serve", "answer over HTTP"),
    "serve status": Command(
        "raysys.commands.serve_admin", "ServiceConfig", "status", "what every replica serves"
    ),
    "serve reload": Command(
        "raysys.commands.serve_admin", "ServiceConfig", "reload", "look for newer builds now"
    ),
    "serve rollback": Command(
        "raysys.commands.serve_admin", "RollbackConfig", "rollback", "serve the index of before"
    ),
    "serve key": Command(
        "raysys.commands.serve_admin", "KeyConfig", "key", "a key of the service, made or removed"
    ),
    "events fold": Command(
        "raysys.commands.events", "FoldConfig", "fold", "events that a service took, to Parquet"
    ),
    "events erase": Command(
        "raysys.commands.events", "EraseConfig", "erase", "forget the events of a user"
    ),
    "experiment report": Command(
        "raysys.commands.experiment_report",
        "ExperimentReportConfig",
        "report",
        "which arm of an experiment is better",
    ),
    "load": Command("raysys.commands.load", "LoadConfig", "load", "ask a service, and time it"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    came: list[int] = []
    if not words or words[0] in ("-h", "--help"):
        _write(_usage())
        return 0 if words else 2
    _set_up_logging()
    try:
        family = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
        if family and words[0] not in COMMANDS and words[1:] in ([], ["--help"], ["-h"]):
            _write("".join(f"raysys {name:<18} {COMMANDS[name].summary}\n" for name in family))
            return 0 if len(words) > 1 else 2
        name, rest = command_of(words)
        if name not in COMMANDS:
            raise ConfigError(f"unknown command {name!r}: expected one of {', '.join(COMMANDS)}")
        yaml_path, overrides, wants_help = _split(rest)
        name = _name_of_today(name, overrides, yaml_path)
        if wants_help:
            _write(_command_help(name, overrides))
            return 0
        with _Stdout() as stdout, _interrupted_by_sigterm() as came:
            result = _run(name, overrides, yaml_path)
            stdout.write(without_keys(result))
    except KeyboardInterrupt:
        if not came:
            return 128 + signal.SIGINT
        log.warning("ended by SIGTERM: run it again, finished builds and saved states are kept")
        return 128 + signal.SIGTERM
    except BaseException as error:
        return _report(error)
    finally:
        _forget_interrupts()
    return 0


def command_of(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command that words begin with, of one word or two, and what follows it."""
    both = " ".join(words[:2])
    if both in COMMANDS:
        return both, list(words[2:])
    longer = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    alone = words[0] in COMMANDS
    named = len(words) > 1 and "=" not in words[1] and not words[1].startswith("-")
    if longer and (named or not alone):
        expected = ", ".join([words[0], *longer] if alone else longer)
        raise ConfigError(f"unknown command {both!r}: expected one of {expected}")
    return words[0], list(words[1:])


def _name_of_today(name: str, overrides: Sequence[str], yaml_path: str | None) -> str:
    """Return the command: `evaluate backtest=4` is `backtest windows=4`, for one more version."""
    keys = dict(read_yaml(yaml_path)) if yaml_path and name == "evaluate" else {}
    keys |= {key: value for key, _, value in (word.partition("=") for word in overrides)}
    if name != "evaluate" or str(keys.get("backtest", 0)) == "0":
        return name
    windows = keys["backtest"]
    log.warning("evaluate backtest=%s is a command now: raysys backtest windows=%s", *[windows] * 2)
    return "backtest"


def _run(name: str, overrides: Sequence[str], yaml_path: str | None) -> str:
    """Run a command and return what belongs on stdout."""
    function, schema = resolve(name, overrides)
    cfg = load(schema, overrides, yaml_path=yaml_path)
    if cfg.tracking and name not in tracking.COMMANDS:
        log.warning("setting ignored key=tracking reason=%s is not tracked", name)
    started = time.perf_counter()
    announced = nullcontext() if name in _BRIEF else uses.announced(name)
    with progress.shown(cfg.progress), announced:
        result = function(cfg)
    if isinstance(result, str):
        return result.rstrip("\n") + "\n"
    record = {
        "job": name,
        "run": cfg.run,
        "build_ids": result.build_ids,
        "seconds": round(time.perf_counter() - started, 3),
        "metrics": result.metrics,
        **result.extra,
    }
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def resolve(
    name: str, overrides: Sequence[str] = ()
) -> tuple[Callable[[Any], StageResult | str], type[JobConfig]]:
    """Import a command's function and its configuration schema.

    A `bench` suite brings its own schema, so the suite is read from `overrides` first.
    """
    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    if name == "bench":
        suites = [word.removeprefix("suite=") for word in overrides if word.startswith("suite=")]
        return module.bench, module.schema_of(suites[-1] if suites else "")
    return getattr(module, command.function), getattr(module, command.config)


def _split(words: Sequence[str]) -> tuple[str | None, list[str], bool]:
    """Separate `--config file` and `--help` from the `key=value` words."""
    yaml_path = None
    overrides = []
    wants_help = False
    todo = list(words)
    while todo:
        word = todo.pop(0)
        if word in ("-h", "--help"):
            wants_help = True
        elif word == "--config":
            if not todo:
                raise ConfigError("--config needs a file")
            yaml_path = todo.pop(0)
        elif word.startswith("--config="):
            yaml_path = word.partition("=")[2]
        elif word.startswith("-"):
            raise ConfigError(f"unknown option {word!r}: expected --config FILE or key=value")
        else:
            overrides.append(word)
    return yaml_path, overrides, wants_help


@contextmanager
def _interrupted_by_sigterm() -> Iterator[list[int]]:
    """Let SIGTERM end the block as Ctrl-C does, so that nothing half-made stays behind.

    Gives the list of the signals that came: Ray hands a KeyboardInterrupt on as a new one, so
    its kind says nothing. A no-op outside the main thread.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def interrupt(number: int, _: object) -> NoReturn:
        came.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)


def _forget_interrupts() -> None:
    """Let the process end with the status that it was given.

    CPython remembers a KeyboardInterrupt that left an `exec` of text (`dataclasses` makes methods
    in that way) even where it was caught later, and `python -m` then ends by SIGINT whatever the
    status is (`Py_RunMain`). The next such `exec` makes it forget (`run_eval_code_obj`).
    """
    exec("")


def _report(error: BaseException) -> int:
    """Log an error: one line for what a user can act upon, a traceback for the rest."""
    known = find_cause(error)
    if known is not None:
        log.error("%s", " ".join(str(known).split()))
        return 2
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    sys.stderr.write(without_keys("".join(traceback.format_exception(error))))
    return 1


class _Stdout:
    """While open, file descriptor 1 points at stderr; `write` reaches the real stdout."""

    def __enter__(self) -> _Stdout:
        sys.stdout.flush()
        self._real = os.dup(1)
        os.dup2(2, 1)
        return self

    def write(self, text: str) -> None:
        """Write text to the real stdout."""
        data = text.encode()
        while data:
            data = data[os.write(self._real, data) :]

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        os.dup2(self._real, 1)
        os.close(self._real)


def _write(text: str, stream: TextIO | None = None) -> None:
    (stream or sys.stdout).write(text)


class _Lines(logging.StreamHandler[TextIO]):
    """Writes, without keys, to what standard error is now: lines and live line must not mix."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return without_keys(super().format(record))


def _set_up_logging() -> None:
    handler = _Lines()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger("raysys")
    root.handlers = [handler]
    root.propagate = False
    root.setLevel(os.environ.get("RAYSYS_LOG_LEVEL", "INFO").upper())


def _usage() -> str:
    lines = ["usage: raysys <command> [--config file.yaml] key=value ...", ""]
    lines += [f"  {name:17} {command.summary}" for name, command in COMMANDS.items()]
    lines += ["", "raysys <command> --help lists the command's keys and defaults."]
    return "\n".join(lines) + "\n"


def schemas(name: str) -> dict[str, type[JobConfig]]:
    """Return the configuration schemas of a command; `bench` has one for every suite.

    The keys say how the command begins: `raysys train`, `raysys bench suite=codes`.
    """
    words: list[list[str]] = [[]]
    if name == "bench":
        suites = importlib.import_module(COMMANDS[name].module).SUITES
        words = [[f"suite={suite}"] for suite in suites]
    return {" ".join(["raysys", name, *word]): resolve(name, word)[1] for word in words}


def _command_help(name: str, overrides: Sequence[str]) -> str:
    title = f"raysys {name}: {COMMANDS[name].summary}\n\n"
    if name == "bench" and not any(word.startswith("suite=") for word in overrides):
        return title + "".join(f"  {suite} --help\n" for suite in schemas(name))
    return title + reference.help_text(resolve(name, overrides)[1])


if __name__ == "__main__":
    raise SystemExit(main())
