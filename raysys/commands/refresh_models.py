"""The models of a refresh: what is served, candidates with its settings, and their builds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.files import AutoencoderFacts
from raysys.autoencoder.validation import RECALL
from raysys.cluster.train_workers import LaunchConfig
from raysys.commands.index import IndexConfig, index
from raysys.commands.train import TrainConfig, fit, train_builds
from raysys.commands.train_compressor import CompressorConfig
from raysys.config import JobConfig
from raysys.data.profiles import Profiles, ProfilesFacts
from raysys.errors import BuildError, ConfigError
from raysys.search.changes import KIND as CHANGES
from raysys.search.served import Served
from raysys.store.builds import Build, Workspace
from raysys.training.optim import OptimConfig
from raysys.training.task import State, chosen

KINDS = (
    *("interactions", "profiles", "autoencoder", "embeddings", "compressor", "codes"),
    *(CHANGES, "index"),
)
"""What becomes current together, in this order: the index, which says what is served, comes last.
"""


@dataclasses.dataclass(frozen=True)
class Model:
    """What is served, as a refresh needs it.

    Attributes:
        served: the index and its builds.
        autoencoder: the model.
        select: metric that its consume block was chosen by.
        rated: whether its levels are ratings, so that `nll` judges it too.
        fitted_until: UTC seconds; it saw nothing later.
        validation_s: length of the validation period of its profiles, in seconds.
    """

    served: Served
    autoencoder: Build
    select: str
    rated: bool
    fitted_until: int
    validation_s: int

    @classmethod
    def open(cls, workspace: Workspace) -> Model:
        """Open what the run serves.

        Raises:
            BuildError: nothing is. ConfigError: its log is not split in time, or it has no model.
        """
        for kind in ("interactions", "profiles", "index"):
            if not workspace.has(kind):
                raise BuildError(
                    f"{workspace.run} holds no {kind} build: run the pipeline first, "
                    f"raysys pipeline run={workspace.run} source=LOG"
                )
        served = Served.open(workspace, verify=False)
        autoencoder, profiles = served.coded.autoencoder, served.coded.profiles
        if autoencoder is None or profiles is None:
            raise ConfigError(
                f"{workspace.run} serves vectors of your own, which no log judges: "
                "train and index them again"
            )
        facts, split = AutoencoderFacts.of(autoencoder), ProfilesFacts.of(profiles)
        if split.cutoffs is None or facts.fitted_until is None:
            raise ConfigError(
                f"refresh judges models by what came later, but {workspace.run} was prepared with "
                f"split={split.split}: prepare it with split=temporal"
            )
        return cls(
            served=served,
            autoencoder=autoencoder,
            select=autoencoder.manifest.config.get("select", RECALL),
            rated=Profiles.open(profiles).levels.n_rated > 1,
            fitted_until=facts.fitted_until,
            validation_s=split.cutoffs["test"] - split.cutoffs["val"],
        )

    def settings(self, cfg: JobConfig, launch: LaunchConfig, *, refit: str) -> TrainConfig:
        """Return the settings that it was trained with, for the same training on other rows.

        Args:
            cfg: of the job.
            launch: workers.
            refit: windows of the final model; with `all` it is compressed too.
        """
        trained = self.autoencoder.manifest.config
        packed = self.served.coded.compressor.manifest.config["compressor"]
        keep = self.served.coded.codes.manifest.config.get("keep")
        return TrainConfig(
            **_place(cfg),
            model="all" if refit == "all" else "autoencoder",
            refit=refit,
            seed=trained["seed"],
            select=self.select,
            horizon_days=trained.get("horizon_days"),
            autoencoder=Conv4RecConfig(**trained["autoencoder"]),
            optim=OptimConfig(**trained["optim"]),
            compressor=CompressorConfig(
                **{**packed, "optim": OptimConfig(**packed["optim"])}, keep=keep
            ),
            launch=launch,
        )

    def candidate(
        self,
        cfg: JobConfig,
        workspace: Workspace,
        launch: LaunchConfig,
        *,
        refit: str,
        begin: Build | None = None,
    ) -> Build:
        """Train a model with the settings of this one on the current profiles; return it."""
        return train_builds(self.settings(cfg, launch, refit=refit), workspace, begin=begin)[0]

    def begin(self, profiles: Build) -> Build | None:
        """Return this model where a training on some profiles can begin at it.

        That is where gradient steps made a part of it, the levels are the same, and the validation
        targets are rows that it did not see, so that epochs are chosen honestly.
        """
        facts, split = AutoencoderFacts.of(self.autoencoder), ProfilesFacts.of(profiles)
        before = self.served.coded.profiles
        same = before is not None and split.levels == ProfilesFacts.of(before).levels
        unseen = (split.cutoffs or {}).get("val", 0) >= self.fitted_until
        return self.autoencoder if same and unseen and any(facts.epochs.values()) else None

    def replacement(
        self,
        cfg: JobConfig,
        workspace: Workspace,
        launch: LaunchConfig,
        *,
        candidate: Build | None = None,
        begin: Build | None = None,
    ) -> dict[str, str]:
        """Build all that takes its place from the current profiles; return {kind: build_id}.

        Args:
            cfg: of the job.
            workspace: the run, as seen from where the work is done.
            launch: workers.
            candidate: of the same profiles: what it chose is taken, which is what would be chosen.
            begin: where the candidate began.
        """
        fitted: Callable[..., State] = fit
        if candidate is not None:
            facts = AutoencoderFacts.of(candidate)
            found = chosen(facts.epochs, facts.val_metrics, facts.choices)
            fitted = functools.partial(fit, chosen=found)
        asked = self.settings(cfg, launch, refit="all")
        train_builds(asked, workspace, fitted=fitted, begin=begin)
        packed = self.served.index.manifest.config
        known = {field.name for field in dataclasses.fields(IndexConfig)}
        index(IndexConfig(**{k: v for k, v in packed.items() if k in known} | _place(cfg)))
        return current(workspace)


def current(workspace: Workspace) -> dict[str, str]:
    """Return {kind: build_id} of what is current, of the kinds that are served together."""
    return {k: workspace.current(k).build_id for k in KINDS if workspace.has(k)}


def _place(cfg: JobConfig) -> dict[str, Any]:
    return {"run": cfg.run, "cache_dir": cfg.cache_dir, "ray": cfg.ray}
