"""Tracking: what a stage or a trial did, as a run of MLflow where `tracking=mlflow` asks for it.

    with tracked(cfg, name="trial 3") as record:
        record.metrics({"recall@20": 0.12}, step=epoch)
        record.artifact(f"{cfg.run}/reports/evaluate-test-model.json")

A record that is opened while another is open becomes its child. Settings are its parameters, build
ids its tags. MLflow is imported by the first record alone. Where its server is away, work goes on
and a warning says so: a record is never worth a training.
Runs go to MLFLOW_TRACKING_URI; without it, to `mlflow.db` and `mlruns/` of the job's own run. The
experiment is MLFLOW_EXPERIMENT_NAME, else the last part of the run's name.
"""

from __future__ import annotations

import contextvars
import functools
import importlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from raysys.config import JobConfig, identity, require
from raysys.errors import ConfigError, told, without_keys
from raysys.store.builds import StageResult
from raysys.store.storage import open_filesystem
from raysys.store.temporary import prefix

log = logging.getLogger(__name__)

C = TypeVar("C", bound=JobConfig)
P = ParamSpec("P")

COMMANDS = ("prepare", "train", "index", "evaluate", "pipeline", "tune")
_FILES = ("report", "page")  # keys of a result that name files
_BATCH = 100  # parameters, tags or metrics that MLflow takes at once
_LONGEST = 5000  # characters of a value: MLflow's servers take 5,000 and more
_REMOTE = ("http", "https", "databricks")
_QUICK = {  # MLflow's own would keep a job waiting for minutes, and tell its makers of it
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Record:
    """What is kept of one stage or trial; this one keeps nothing."""

    run_id: str | None = None
    failed = False  # what it is of, which is told here where nothing was raised

    def params(self, values: Mapping[str, Any]) -> None:
        """Keep settings; nested ones get dotted names."""

    def metrics(self, values: Mapping[str, Any], *, step: int = 0) -> None:
        """Keep numbers, nested ones under dotted names; what is no number is left out.

        Args:
            values: numbers by name; of `{"mean", "ci_low", "ci_high"}` the mean is kept, as the
                report has the intervals.
            step: the epoch.
        """

    def tags(self, values: Mapping[str, str]) -> None:
        """Keep what a run is found by."""

    def artifact(self, path: str) -> None:
        """Keep a copy of a file, which may lie on an object store."""


class _Server:
    """One tracking server or database, until it is lost."""

    def __init__(self, uri: str, client: Any, experiment: str) -> None:
        self.uri, self.client, self.experiment = uri, client, experiment
        self.lost = False

    def ask(self, question: Callable[[], Any]) -> Any:
        """Return what the server answers; after the first failure nothing is asked any more."""
        if self.lost:
            return None
        try:
            return question()
        except Exception as error:  # whatever MLflow, a database or a network may raise
            self.lost = True
            log.warning("tracking lost uri=%s reason=%s", without_keys(self.uri), told(error))
            return None


class _MlflowRecord(Record):
    def __init__(self, server: _Server, run_id: str) -> None:
        self.server, self.run_id = server, run_id

    def params(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        flat = [Param(_name(key), _text(value)) for key, value in _leaves(values)]
        self._send(params=flat)

    def metrics(self, values: Mapping[str, Any], *, step: int = 0) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        flat = [
            Metric(_name(key), float(value), now, step)
            for key, value in _leaves(values)
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        self._send(metrics=flat)

    def tags(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._send(tags=[RunTag(_name(key), _text(value)) for key, value in values.items()])

    def artifact(self, path: str) -> None:
        self.server.ask(lambda: self._copy(path))

    def end(self, status: str) -> None:
        client = self.server.client
        self.server.ask(lambda: client.set_terminated(self.run_id, status=status))

    def _send(self, **entries: list[Any]) -> None:
        client = self.server.client
        for key, values in entries.items():
            for first in range(0, len(values), _BATCH):
                batch = {key: values[first : first + _BATCH]}
                self.server.ask(functools.partial(client.log_batch, self.run_id, **batch))

    def _copy(self, path: str) -> None:
        filesystem, source = open_filesystem(path)
        with tempfile.TemporaryDirectory(prefix=prefix("tracking")) as folder:
            copy = Path(folder) / source.rsplit("/", 1)[-1]
            with filesystem.open_input_stream(source) as stream:
                copy.write_bytes(stream.read())
            self.server.client.log_artifact(self.run_id, str(copy))


_NOTHING = Record()
_LOST = Record()  # nothing is kept here and below: there is no server to ask again
_current: contextvars.ContextVar[Record] = contextvars.ContextVar("record", default=_NOTHING)


def current() -> Record:
    """Return the record that is open here; one that keeps nothing where there is none."""
    return _current.get()


@contextmanager
def tracked(cfg: JobConfig, *, name: str, parent: Record | None = None) -> Iterator[Record]:
    """Keep a record of the block, with the settings as its parameters.

    Args:
        cfg: the block's settings; without `tracking` nothing is kept.
        name: what the record is called.
        parent: the record that this one belongs to; None takes the one that is open in this thread.

    Raises:
        ConfigError: `tracking` has no such value, MLflow is not installed, or the place where it
            should write cannot be used.
    """
    require(cfg.tracking in (None, "mlflow"), "tracking", cfg.tracking, "mlflow, or null")
    above = parent or current()
    record = _opened(cfg, name, above) if cfg.tracking else _NOTHING
    token = _current.set(record)
    status = "FAILED"
    try:
        yield record
        status = "FAILED" if record.failed else "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        _current.reset(token)
        if isinstance(record, _MlflowRecord):
            record.end(status)


def tracked_stage(
    name: str,
) -> Callable[[Callable[Concatenate[C, P], StageResult]], Callable[Concatenate[C, P], StageResult]]:
    """Keep a record of each call of a stage: settings, metrics, build ids and reports."""

    def decorated(
        stage: Callable[Concatenate[C, P], StageResult],
    ) -> Callable[Concatenate[C, P], StageResult]:
        @functools.wraps(stage)
        def call(cfg: C, /, *args: P.args, **further: P.kwargs) -> StageResult:
            with tracked(cfg, name=name) as record:
                result = stage(cfg, *args, **further)
                record.metrics({**result.extra, **result.metrics})
                record.tags({f"build.{kind}": each for kind, each in result.build_ids.items()})
                for key in _FILES:
                    if result.extra.get(key):
                        record.artifact(result.extra[key])
            return result

        return call

    return decorated


def _opened(cfg: JobConfig, name: str, above: Record) -> Record:
    """Start a run of MLflow, below another one where there is one."""
    if above is _LOST:
        return _LOST
    server = above.server if isinstance(above, _MlflowRecord) else _connected(cfg)
    if server is None:
        return _LOST
    tags = {"mlflow.runName": name, "mlflow.source.name": f"raysys {name}"}
    tags["raysys.run"] = without_keys(cfg.run)
    if above.run_id is not None:
        tags["mlflow.parentRunId"] = above.run_id
    run = server.ask(lambda: server.client.create_run(server.experiment, tags=tags))
    if run is None:
        return _LOST
    record = _MlflowRecord(server, run.info.run_id)
    record.params(identity(cfg))
    return record


def _connected(cfg: JobConfig) -> _Server | None:
    """Return the place that MLflow writes to, or None and a warning where it is away."""
    for key, value in _QUICK.items():
        os.environ.setdefault(key, value)
    try:
        client_of = importlib.import_module("mlflow").MlflowClient
    except ImportError as error:
        raise ConfigError(
            f"tracking=mlflow needs a package: pip install 'raysys[tracking]' ({told(error)})"
        ) from error
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    uri, folder = _place(cfg)
    try:
        client = client_of(tracking_uri=uri)
        server = _Server(uri, client, _experiment(client, cfg, folder))
    except Exception as error:  # whatever MLflow, a database or a network may raise
        reason = told(error)
        if uri.split(":")[0] not in _REMOTE:
            raise ConfigError(
                f"tracking=mlflow cannot write to {without_keys(uri)}: {reason}"
            ) from error
        log.warning("tracking lost uri=%s reason=%s", without_keys(uri), reason)
        return None
    log.info("tracking uri=%s experiment=%s", without_keys(uri), server.experiment)
    return server


def _place(cfg: JobConfig) -> tuple[str, str | None]:
    """Return the tracking URI, and where files go unless the server decides."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri:
        return uri, None
    if not cfg.run or "://" in cfg.run:
        where = without_keys(cfg.run)
        raise ConfigError(f"tracking=mlflow needs MLFLOW_TRACKING_URI where run={where}")
    Path(cfg.run).mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{cfg.run}/mlflow.db", f"{cfg.run}/mlruns"


def _experiment(client: Any, cfg: JobConfig, folder: str | None) -> str:
    """Return the id of the experiment, which is made where it is not there."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or cfg.run.rstrip("/").rsplit("/", 1)[-1]
    for attempt in range(2):
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        try:
            return str(client.create_experiment(name, artifact_location=folder))
        except Exception:
            if attempt:  # else another job may have made it meanwhile
                raise
    raise AssertionError(name)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of nested values; the mean of a metric stands for it."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "mean" in value:
            yield name, value["mean"]
        elif isinstance(value, Mapping):
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _name(key: str) -> str:
    """Return a name in the letters that MLflow takes: `recall@20^0.2` has none for its signs."""
    return re.sub(r"[^\w\-. :/]", "_", key.replace("@", "_at_").replace("^", "_beta_"))


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return without_keys(text)[:_LONGEST]
