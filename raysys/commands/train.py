"""Train: profiles -> autoencoder and item embeddings -> compressor and codes."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.files import (
    Autoencoder,
    AutoencoderFacts,
    write_model,
    write_training,
)
from raysys.autoencoder.fit_data import FitData, fit_data
from raysys.autoencoder.linear_form import (
    DISCOVER_PURPOSE,
    candidate_recall,
    fit_discover_slope,
    retrieval_query,
    retrieval_vectors,
)
from raysys.autoencoder.model import Conv4Rec
from raysys.autoencoder.validation import RECALL, REPORTED, check_metric
from raysys.cluster.connect import connected
from raysys.cluster.train_workers import LaunchConfig, OnRecord, launch
from raysys.commands.import_vectors import import_vectors
from raysys.commands.preflight import sizes_of
from raysys.commands.preflight_hosts import refuse_oversized, with_workers
from raysys.commands.train_compressor import CompressorConfig, compress
from raysys.commands.train_phases import autoencoder_phases, last_period, windows_of
from raysys.compressor.embeddings import EmbeddingsFacts, write_embeddings
from raysys.compressor.packing import SIMILARITIES
from raysys.config import JobConfig, as_dict, identity, local, require, require_run
from raysys.data.batches import ragged
from raysys.data.cells import Cells
from raysys.data.profiles import Profiles, ProfilesFacts
from raysys.data.schema import Window, period_windows
from raysys.errors import ConfigError
from raysys.evaluation.evaluator import point
from raysys.scoring.rankings import Ranking
from raysys.store.builds import Build, StageResult, Workspace
from raysys.store.drafts import Draft
from raysys.timing.files import Timed
from raysys.timing.form import TimeForm
from raysys.tracking import current, tracked_stage
from raysys.training import ledger
from raysys.training.history import HISTORY_FILE, read_scalars, shares, timed
from raysys.training.optim import OptimConfig
from raysys.training.task import State

log = logging.getLogger(__name__)

MODELS = ("all", "autoencoder", "compressor")
REFITS = ("none", "val", "all")
_PROBE_USERS = 500
_SLOPE_USERS = 256
_MAX_ELEMENTS = 1 << 26  # of a probes x N matrix


@dataclasses.dataclass
class TrainConfig(JobConfig):
    """Settings of the train job.

    Attributes:
        model: `autoencoder`, `compressor`, or `all`: the autoencoder's item vectors are compressed.
        source: own embeddings instead of the autoencoder's (`.npy`, or Parquet: a file, directory,
            glob or URI), compressor only.
        ids: item ids of a `.npy` source.
        similarity: of a source, `cosine` or `inner_product` (norms count).
        refit: windows that the final model adds to FIT after epochs are chosen: `none`, `val` (for
            the test period of a temporal split), `all` (for production; nothing is left to
            evaluate on).
        select: metric on the validation targets that the consume block's epochs, penalty and prior
            are chosen by: `recall@20`, `ndcg@100`, or pooled `recall@20^BETA` that penalises
            popular items. Levels are chosen by their likelihood.
        horizon_days: how far ahead lists will be asked for, in days above 0; null: to the end of
            the test period, with `refit=all` as far as the validation period is long. Validation
            that looks less than a third as far chooses how time enters in its plain form only.
        autoencoder: the model.
        optim: its training.
        compressor: the compressor and its training.
        launch: Ray Train workers.
    """

    model: str = "all"
    source: str | None = local(None)
    ids: str | None = local(None)
    similarity: str = "cosine"
    refit: str = "val"
    select: str = RECALL
    horizon_days: float | None = None
    autoencoder: Conv4RecConfig = dataclasses.field(default_factory=Conv4RecConfig)
    optim: OptimConfig = dataclasses.field(default_factory=lambda: OptimConfig(batch_size=None))
    compressor: CompressorConfig = dataclasses.field(default_factory=CompressorConfig)
    launch: LaunchConfig = local(factory=LaunchConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for settings that conflict."""
        require(self.model in MODELS, "model", self.model, f"one of {', '.join(MODELS)}")
        require(
            self.similarity in SIMILARITIES,
            "similarity",
            self.similarity,
            " or ".join(SIMILARITIES),
        )
        check_metric("select", self.select)
        days = self.horizon_days
        require(days is None or 0 < days < math.inf, "horizon_days", days, "above 0, or null")
        require(self.refit in REFITS, "refit", self.refit, f"one of {', '.join(REFITS)}")
        if self.source is not None and self.model != "compressor":
            raise ConfigError(f"source={self.source!r} needs model=compressor, not {self.model!r}")
        if self.ids is not None and self.source is None:
            raise ConfigError(f"ids={self.ids!r} needs source= with the embeddings")


@tracked_stage("train")
def train(cfg: TrainConfig) -> StageResult:
    """Train what `cfg.model` names and write the builds.

    Returns:
        `metrics` are those of the chosen epochs on the validation targets, `nll` before levels
        are shifted. `extra["training"]` says by kind what trainings took, when they ran.
    """
    require_run(cfg)
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    result = StageResult()
    with connected(cfg.ray):
        builds = train_builds(cfg, workspace)
    trainings = result.extra["training"] = {}
    for build in builds:
        result.build_ids[build.kind] = build.build_id
        if "training" in build.manifest.notes:  # builds of before have none
            trainings[build.kind] = build.manifest.notes["training"]
        if build.kind == "autoencoder":
            for name, value in AutoencoderFacts.of(build).val_metrics.items():
                result.metrics[f"val_{name}"] = point(value)
            for epoch, scalars in read_scalars(build.path(HISTORY_FILE)) if cfg.tracking else ():
                current().metrics(scalars, step=epoch)
        if build.kind == "codes":
            record = build.record()
            columns = ("code_dim", "n_active", "packing", "bytes_per_item", "mean_cosine")
            result.extra["codes"] = {name: record[name] for name in columns}
    return result


def train_builds(
    cfg: TrainConfig,
    workspace: Workspace,
    *,
    fitted: Callable[..., State] | None = None,
    begin: Build | None = None,
) -> list[Build]:
    """Write the builds of `train`, or reuse them, on the cluster that there is, if any.

    Args:
        cfg: the train job's settings.
        workspace: the run.
        fitted: fits the autoencoder with the arguments of `fit`; None: that, unless a host has
            too little memory.
        begin: model that the autoencoder's gradient steps begin at.
    """
    if cfg.source is not None:
        embeddings = import_vectors(
            workspace,
            source=cfg.source,
            ids=cfg.ids,
            force=cfg.force,
            similarity=cfg.similarity,
        )
        builds = [embeddings]
    elif cfg.model == "compressor":
        embeddings = workspace.current("embeddings")
        workspace.chain(embeddings)
        builds = []
    else:
        builds = _train_autoencoder(cfg, workspace, fitted or _fit_that_fits, begin)
        embeddings = builds[-1]
    if cfg.model != "autoencoder":
        builds += compress(
            workspace,
            embeddings,
            cfg=cfg.compressor,
            seed=cfg.seed,
            workers=cfg.launch,
            force=cfg.force,
        )
    return builds


def _train_autoencoder(
    cfg: TrainConfig, workspace: Workspace, fitted: Callable[..., State], begin: Build | None
) -> list[Build]:
    """Write the `autoencoder` and `embeddings` builds of the current profiles, or reuse them."""
    profiles_build = workspace.current("profiles")
    workspace.chain(profiles_build)
    cfg = sized(cfg, profiles_build)
    settings = identity(cfg)
    settings = {
        k: settings[k] for k in ("seed", "refit", "select", "horizon_days", "autoencoder", "optim")
    }
    inputs = [profiles_build]
    if begin is not None:
        settings["begin"] = begin.ref()
        fitted = functools.partial(fitted, begin=begin.build_id)

    @functools.cache
    def cells() -> Cells:
        profiles = Profiles.open(profiles_build)
        return profiles.cells(windows_of(profiles, last_period(profiles.facts.split, cfg.refit)))

    def write(draft: Draft) -> AutoencoderFacts:
        seconds: dict[str, float] = {}
        with timed(seconds, "all"):
            state = fitted(cfg, workspace, profiles_build, name=draft.scratch())
        inside, whole = dict(state["seconds"]), seconds["all"]
        seconds = {"workers": whole - sum(inside.values()), **inside}
        with timed(seconds, "write"):
            facts = _write_model(cfg, draft, profiles_build, cells(), state)
        training = ledger.of_state(state, seconds=whole)
        log.info("autoencoder %s", shares(seconds))
        log.info("autoencoder trained %s", ledger.line(training))
        draft.note(
            seconds={name: round(value, 3) for name, value in seconds.items()}, training=training
        )
        return facts

    autoencoder = workspace.build(
        "autoencoder", config=settings, inputs=inputs, write=write, force=cfg.force
    )
    embeddings = workspace.build(
        "embeddings",
        config={},
        inputs=[autoencoder, profiles_build],
        write=lambda draft: _write_embeddings(draft, autoencoder, profiles_build, cells()),
        force=cfg.force,
    )
    return [autoencoder, embeddings]


def sized(cfg: TrainConfig, profiles: Build) -> TrainConfig:
    """Return the settings with the sizes that follow from the catalogue where none are given.

    They are part of a build's identity: what is chosen enters it as if it had been given. The whole
    catalogue decides, whatever windows are fitted: a sweep's trials are of the model's size.
    """
    n_items = ProfilesFacts.of(profiles).n_items
    latent, batch_size = sizes_of(n_items, cfg.autoencoder, cfg.optim)
    if (latent, batch_size) == (cfg.autoencoder.latent, cfg.optim.batch_size):
        return cfg
    log.info("sizes n_items=%d latent=%d batch_size=%d", n_items, latent, batch_size)
    return dataclasses.replace(
        cfg,
        autoencoder=dataclasses.replace(cfg.autoencoder, latent=latent),
        optim=dataclasses.replace(cfg.optim, batch_size=batch_size),
    )


def fit(
    cfg: TrainConfig,
    workspace: Workspace,
    profiles: Build,
    *,
    name: str,
    callbacks: tuple[Any, ...] = (),
    on_record: OnRecord | None = None,
    measured: Sequence[str] = REPORTED,
    chosen: State | None = None,
    begin: str | None = None,
) -> State:
    """Train the autoencoder and return the loop's final state; a sweep calls this too.

    Args:
        cfg: the train job's settings.
        workspace: the run.
        profiles: what to train on.
        name: identity of the training, under which it resumes.
        callbacks: Ray Train callbacks.
        on_record: called with what the loop reports, with `launch.workers=0`.
        measured: metrics of the finished model on the validation users, by name.
        chosen: what an earlier training on the same fit and validation windows chose.
        begin: build_id of a model to begin at.
    """
    cfg = sized(cfg, profiles)
    return launch(
        autoencoder_phases,
        {
            "run": cfg.run,
            "cache_dir": cfg.cache_dir,
            "profiles": profiles.build_id,
            "cfg": as_dict(cfg.autoencoder),
            "seed": cfg.seed,
            "refit": cfg.refit,
            "select": cfg.select,
            "horizon_days": cfg.horizon_days,
            "measured": tuple(measured),
            "begin": begin,
        },
        optim=cfg.optim,
        seed=cfg.seed,
        cfg=cfg.launch,
        storage=workspace.storage,
        name=name,
        callbacks=callbacks,
        on_record=on_record,
        chosen=chosen,
    )


def _fit_that_fits(
    cfg: TrainConfig, workspace: Workspace, profiles: Build, **further: Any
) -> State:
    """Fit, where hosts have the memory for it; a sweep looks at that once for all of its trials."""
    facts = ProfilesFacts.of(profiles)
    cfg = with_workers(cfg, facts)
    refuse_oversized(cfg, facts)
    return fit(cfg, workspace, profiles, **further)


def _write_model(
    cfg: TrainConfig, draft: Draft, profiles_build: Build, cells: Cells, state: State
) -> AutoencoderFacts:
    profiles = Profiles.open(profiles_build)
    split = profiles.facts.split
    period = last_period(split, cfg.refit)
    model = Conv4Rec.restored(state["model"], cfg.autoencoder, profiles.levels)
    data = fit_data(profiles, period, cells=cells)
    rng = np.random.default_rng([cfg.seed, DISCOVER_PURPOSE])
    some = rng.permutation(data.train.n_users)[:_SLOPE_USERS]
    few = max(1, _MAX_ELEMENTS // model.n_items)
    fit_discover_slope(model, _latents(model, data, np.sort(some[:few])))
    write_model(draft, model)
    write_training(draft, state["history"])
    form, spread = TimeForm.of_choices(state["choices"])
    if data.now is not None and model.cfg.consume_loss == "cosine" and form.weight:
        Timed.at_first(form, spread, data.counters()).save(draft)
    windows = Window if period == "all" else period_windows(split, period).fitted
    return AutoencoderFacts(
        n_items=model.n_items,
        n_levels=model.levels.n_levels,
        period=period,
        fitted_windows=tuple(int(window) for window in windows),
        fitted_until=data.now,
        epochs=state["epochs"],
        choices=state["choices"],
        val_metrics=state["metrics"],
        rankings=tuple(model.available_rankings),
        n_parameters=sum(p.numel() for p in model.parameters()),
    )


def _write_embeddings(
    draft: Draft, autoencoder: Build, profiles_build: Build, cells: Cells
) -> EmbeddingsFacts:
    """Write item vectors, and queries of some users that the index measures its recall with."""
    opened = Autoencoder.open(autoencoder)
    model = opened.model
    profiles = Profiles.open(profiles_build)
    vectors, bias = retrieval_vectors(model)
    data = fit_data(profiles, opened.facts.period, cells=cells)
    rows = np.unique(np.linspace(0, data.train.n_users - 1, _PROBE_USERS).astype(np.int64))
    z = _latents(model, data, rows)
    rankings = [Ranking(name) for name in model.available_rankings]
    queries = {
        str(ranking): torch.cat(retrieval_query(model, z, ranking), dim=1).numpy()
        for ranking in rankings
        if ranking.rule.probed
    }
    facts = write_embeddings(
        draft,
        vectors=vectors,
        bias=bias,
        items=profiles.items.slice(0, model.n_items),
        similarity="inner_product",
        queries=queries,
    )
    few = max(1, _MAX_ELEMENTS // model.n_items)
    recall = candidate_recall(model, z[:few], rankings)
    log.info("candidates recall=%s", " ".join(f"{k}={v:.4f}" for k, v in recall.items()))
    names = tuple(model.available_rankings)
    return dataclasses.replace(facts, rankings=names, candidate_recall=recall)


@torch.no_grad()
def _latents(model: Conv4Rec, data: FitData, rows: NDArray[np.int64]) -> torch.Tensor:
    """Return the latents [B, H] of some training users."""
    return model.encode(ragged(data.train.users(rows), reference_time=data.now))
