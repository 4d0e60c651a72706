"""Backtest: the settings of a run's current builds, trained and evaluated at several past cuts.

    window 1   fit ----------> [val) [test)
    window 2   fit ----------------> [val) [test)
                                     |step |

    raysys backtest run=R windows=4

Windows are as long as the run's own test window; the last one ends with the log. Each is a run of
its own, `<run>/backtest/<k>-of-<n>`: the log before the window's end, prepared, trained and
evaluated. They stay, so a second backtest of the same settings only reads them. What is printed
last is the mean difference to the best baseline, with its interval over windows.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys import progress
from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.validation import RECALL
from raysys.cluster.connect import connected
from raysys.cluster.train_workers import LaunchConfig
from raysys.commands.evaluate import EvaluateConfig, MeasureConfig, evaluate
from raysys.commands.prepare import prepare
from raysys.commands.train import TrainConfig, train
from raysys.config import local, require, require_run
from raysys.data.interactions import Interactions, InteractionsFacts
from raysys.data.profiles import ProfilesFacts
from raysys.errors import ConfigError, DataError
from raysys.evaluation.bootstrap import interval
from raysys.evaluation.comparison import replicated, users_of_report
from raysys.evaluation.evaluator import Metrics
from raysys.prepare.config import PrepareConfig
from raysys.prepare.cutoffs import backtest_cutoffs
from raysys.reports import tables
from raysys.reports import windows as verdict
from raysys.reports.html import backtest as page
from raysys.reports.html import pages
from raysys.reports.methods import Subject
from raysys.store.builds import Build, StageResult, Workspace
from raysys.store.storage import join
from raysys.store.temporary import prefix
from raysys.training.optim import OptimConfig

log = logging.getLogger(__name__)

_PREPARE_KEYS = (
    "min_user_rows",
    "max_user_rows",
    "min_item_rows",
    "core_rounds",
    "liked_levels",
    "negative_events",
)


@dataclasses.dataclass
class BacktestConfig(MeasureConfig):
    """How many windows of the past, and how each of them is evaluated.

    Attributes:
        windows: rolling windows that the current settings are trained and evaluated on.
        launch: Ray Train workers of the trainings.
    """

    RENAMED = {"backtest": "windows"}
    GONE = MeasureConfig.GONE | {
        "period": "a backtest evaluates period=test",
        "via": "a backtest evaluates via=model",
        "rescore": "a backtest evaluates via=model",
    }

    windows: int = 4
    launch: LaunchConfig = local(factory=LaunchConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        super().__post_init__()
        require(self.windows >= 1, "windows", self.windows, "1 or more")


@dataclasses.dataclass(frozen=True)
class _Window:
    """One window of a backtest; times in UTC seconds, `end` excluded."""

    number: int
    val: int
    test: int
    end: int

    def __str__(self) -> str:
        """Return its cuts as dates."""
        cuts = {"val": self.val, "test": self.test, "end": self.end}
        return " ".join(f"{name}={_day(cut)}" for name, cut in cuts.items())


def backtest(cfg: BacktestConfig) -> StageResult:
    """Evaluate `cfg.windows` rolling windows.

    Returns:
        `metrics` are means over the windows, with users resampled across all of them together;
        `extra["backtest"]` holds one entry per window, `extra["differences"]` the model against
        the best baseline, over windows, as `reports/windows.py` defines it.

    Raises:
        ConfigError: the run is not split in time. DataError: no window has enough data; one that
            has not is left out with a warning.
    """
    require_run(cfg)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    subject = Subject.open(workspace, "model")
    windows = _windows(cfg, subject)
    results: list[tuple[_Window, str, StageResult]] = []
    left_out: list[dict[str, Any]] = []
    stage = progress.stage("backtest", total=len(windows), unit="windows", lines=progress.STEPS)
    with connected(cfg.ray), stage as work:
        for window in windows:
            work.say(f"backtest window={window.number}/{len(windows)} {window}")
            try:
                results.append((window, *_run_window(cfg, subject, window)))
            except DataError as error:
                log.warning("backtest window=%d is left out: %s", window.number, error)
                left_out.append({"number": window.number, "reason": str(error)})
            work.add()
    if not results:
        raise DataError(f"no window of windows={cfg.windows} has enough data: {left_out}")
    entries = [
        {
            **dataclasses.asdict(window),
            "run": run,
            "evaluated": result.extra["evaluated"],
            "metrics": tables.headline(result.metrics),
            "baselines": result.extra["baselines"],
            "validation": result.extra["validation"],
        }
        for window, run, result in results
    ]
    reports = results[0][2].extra["report"].removeprefix(f"{results[0][1]}/")
    means = _means(cfg, [run for _, run, _ in results], reports.removesuffix(".json"))
    name = f"reports/backtest-{cfg.windows}"
    against = verdict.differences(
        [verdict.Window(e["metrics"], e["baselines"], e["validation"]) for e in entries]
    )
    record = {
        "backtest": entries,
        "metrics": means,
        "differences": against,
        "left_out": left_out,
    }
    workspace.storage.write_atomic(f"{name}.json", json.dumps(record, indent=1) + "\n")
    shown = page.page_of(record, run=pages.name_of_run(cfg.run))
    where = pages.publish(workspace, f"{name}.html", shown)
    for line in [*_table(entries, means), *verdict.table(against)]:
        log.info("%s", line)
    return StageResult(
        build_ids=subject.build_ids,
        metrics=means,
        extra={
            "report": f"{cfg.run.rstrip('/')}/{name}.json",
            "page": where,
            "period": "test",
            "backtest": entries,
            "differences": against,
            "left_out": left_out,
        },
    )


def _windows(cfg: BacktestConfig, subject: Subject) -> list[_Window]:
    cutoffs = ProfilesFacts.of(subject.profiles).cutoffs
    if cutoffs is None or subject.interactions is None:
        raise ConfigError(f"windows={cfg.windows} needs a run prepared with split=temporal")
    time_range = InteractionsFacts.of(subject.interactions).time_range
    assert time_range is not None, "a log that is split in time has times"
    first, last = time_range
    step = last + 1 - cutoffs["test"]
    cuts = backtest_cutoffs((first, last), n_folds=cfg.windows, step_s=step)
    return [_Window(number, *cut) for number, cut in enumerate(cuts, start=1)]


def _run_window(cfg: BacktestConfig, subject: Subject, window: _Window) -> tuple[str, StageResult]:
    """Prepare, train and evaluate one window; return its run and result."""
    run = join(cfg.run, f"backtest/{window.number}-of-{cfg.windows}")
    shared: dict[str, Any] = {"run": run, "cache_dir": cfg.cache_dir, "ray": cfg.ray}
    before = subject.profiles.manifest.config
    with tempfile.TemporaryDirectory(prefix=prefix("backtest")) as folder:
        assert subject.interactions is not None, "windows were made of its times"
        _write_log(subject.interactions, Path(folder), end=window.end)
        prepare(
            PrepareConfig(
                **shared,
                source=folder,
                seed=before.get("seed", cfg.seed),
                val_cut=float(window.val),
                test_cut=float(window.test),
                **{key: before[key] for key in _PREPARE_KEYS if key in before},
            )
        )
    trained = subject.autoencoder.manifest.config
    train(
        TrainConfig(
            **shared,
            model="autoencoder",
            seed=trained["seed"],
            select=trained.get("select", RECALL),
            horizon_days=trained.get("horizon_days"),
            autoencoder=Conv4RecConfig(**trained["autoencoder"]),
            optim=OptimConfig(**trained["optim"]),
            launch=cfg.launch,
        )
    )
    measured = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(MeasureConfig)}
    return run, evaluate(EvaluateConfig(**measured | {"run": run}))


def _write_log(interactions: Build, folder: Path, *, end: int) -> None:
    """Write the rows before `end`, part by part; parts without rows are left out."""
    for path in Interactions.open(interactions).part_paths:
        table = pq.read_table(path)
        kept = table.filter(pc.less(table["timestamp"], end))
        if len(kept):
            pq.write_table(kept, folder / path.name, compression="zstd", compression_level=1)


def _means(cfg: BacktestConfig, runs: Sequence[str], name: str) -> Metrics:
    """Return the means over windows; a user has the same bootstrap weights in all of them."""
    found = [
        replicated(
            users_of_report(Workspace(run, cache_dir=cfg.cache_dir).storage, name, "model"),
            seed=cfg.seed,
            replicates=cfg.replicates,
        )
        for run in runs
    ]
    means: Metrics = {}
    for name in found[0]:
        if all(name in values for values in found):
            mean = np.mean([values[name] for values in found], axis=0)
            low, high = interval(mean[1:])
            means[name] = {"mean": float(mean[0]), "ci_low": low, "ci_high": high}
    return means


def _table(entries: Sequence[dict[str, Any]], means: Metrics) -> list[str]:
    """Lay out one line per window and method, and the means of the model."""
    methods: dict[str, Metrics] = {}
    for entry in entries:
        days = "..".join(_day(entry[key]) for key in ("test", "end"))
        methods[f"{days} model"] = entry["metrics"]
        methods |= {f"{days} {name}": found for name, found in entry["baselines"].items()}
    return tables.table({**methods, "mean model": means})


def _day(second: int) -> str:
    return datetime.datetime.fromtimestamp(second, tz=datetime.UTC).strftime("%Y-%m-%d")
