"""Pipeline: prepare, train, index and evaluate in one job, on one cluster connection."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from raysys.cluster.connect import connected
from raysys.commands.evaluate import EvaluateConfig, evaluate
from raysys.commands.index import IndexConfig, index
from raysys.commands.prepare import prepare
from raysys.commands.report import write_page
from raysys.commands.train import TrainConfig, train
from raysys.config import JobConfig, require_run
from raysys.errors import ConfigError
from raysys.log.columns import ColumnsConfig, ItemsColumnsConfig
from raysys.log.formats.config import FormatConfig
from raysys.prepare.config import PrepareConfig
from raysys.store.builds import StageResult, Workspace
from raysys.tracking import tracked_stage
from raysys.training import ledger

log = logging.getLogger(__name__)

_STAGES: dict[str, Callable[[Any], StageResult]] = {
    "prepare": prepare,
    "train": train,
    "index": index,
    "evaluate": evaluate,
}

_SHARED = ("source", "items", "columns", "format", "items_columns", "items_format", "split")


@dataclasses.dataclass
class PipelineConfig(JobConfig):
    """The keys that stages share stand at the top, all others below their stage's name.

    Attributes:
        source, items, columns, format, items_columns, items_format, split: see `prepare`.
        prepare, train, index, evaluate: the settings of each stage.
    """

    source: str = ""
    items: str | None = None
    columns: ColumnsConfig = dataclasses.field(default_factory=ColumnsConfig)
    format: FormatConfig = dataclasses.field(default_factory=FormatConfig)
    items_columns: ItemsColumnsConfig = dataclasses.field(default_factory=ItemsColumnsConfig)
    items_format: FormatConfig = dataclasses.field(default_factory=FormatConfig)
    split: str = "temporal"
    prepare: PrepareConfig = dataclasses.field(default_factory=PrepareConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    index: IndexConfig = dataclasses.field(default_factory=IndexConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)

    @classmethod
    def from_old(cls, tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        """Return the keys of today: `split` stands here, what went with it below `prepare`.

        Raises:
            ConfigError: windows to backtest; the message names their command.
        """
        measured = tree.get("evaluate")
        windows = measured.get("backtest") if isinstance(measured, Mapping) else None
        if str(windows or 0) not in ("0", "null"):
            raise ConfigError(
                f"{prefix}evaluate.backtest={windows} is a command of its own now: "
                f"raysys backtest windows={windows}"
            )
        below = tree.get("prepare")
        if tree.get("split") != "given" or not isinstance(below, Mapping):
            return dict(tree)
        own = PrepareConfig.from_old({**below, "split": "given"}, f"{prefix}prepare.")
        return {**tree, "split": own.pop("split"), "prepare": own}

    def __post_init__(self) -> None:
        """Hand the shared keys down to the stages."""
        _hand_down(self, self.prepare, "prepare", _SHARED)
        for name in _STAGES:
            shared = [field.name for field in dataclasses.fields(JobConfig)]
            _hand_down(self, getattr(self, name), name, shared)


@tracked_stage("pipeline")
def pipeline(cfg: PipelineConfig) -> StageResult:
    """Run the four stages and evaluate both the model and what the service returns.

    Returns:
        `metrics` are those of the model's exact ranking; `metrics_index` (absent where the split
        ranks nothing) are those of what the index returns; `stage_seconds` the time of each stage;
        `ledger` its sum and what the trainings took, which is that of before where they are reused;
        `page` the page of the run.
    """
    require_run(cfg)
    total = StageResult(extra={"stage_seconds": {}})
    with connected(cfg.ray):
        for name, stage in _STAGES.items():
            result = _timed(name, stage, getattr(cfg, name), total)
            total.build_ids |= result.build_ids
            total.extra |= {k: v for k, v in result.extra.items() if k not in total.extra}
            total.metrics = result.metrics
        if cfg.split != "ratings" and cfg.evaluate.via == "model":
            served = dataclasses.replace(cfg.evaluate, via="index", baselines=[])
            result = _timed("evaluate_index", evaluate, served, total)
            total.extra["metrics_index"] = result.metrics
    total.extra["ledger"] = {
        "seconds": round(sum(total.extra["stage_seconds"].values()), 1),
        **ledger.totals(total.extra["training"].values()),
    }
    total.extra["page"] = write_page(Workspace(cfg.run, cache_dir=cfg.cache_dir))
    return total


def _timed(
    name: str, stage: Callable[[Any], StageResult], cfg: Any, total: StageResult
) -> StageResult:
    started = time.perf_counter()
    log.info("stage started name=%s", name)
    result = stage(cfg)
    seconds = round(time.perf_counter() - started, 1)
    log.info("stage finished name=%s seconds=%.1f", name, seconds)
    total.extra["stage_seconds"][name] = seconds
    return result


def _hand_down(parent: Any, child: Any, stage: str, names: Any) -> None:
    """Copy shared settings to a stage's own; a stage may not set them differently."""
    fresh = type(child)()
    for name in names:
        own, shared = getattr(child, name), getattr(parent, name)
        if own not in (getattr(fresh, name), shared):
            raise ConfigError(f"{stage}.{name}={own!r} is not accepted: set {name}= instead")
        setattr(child, name, shared)
    if hasattr(child, "__post_init__"):
        child.__post_init__()  # checks what it was handed
