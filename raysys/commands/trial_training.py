"""The training of a trial, followed epoch by epoch: what it says, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raysys.commands.train import TrainConfig, fit
from raysys.store.builds import Build, Workspace
from raysys.training import ledger
from raysys.training.task import State


class Followed:
    """Fits a trial's model.

    Args:
        metric: that epochs are chosen by; its values make the history.
        on_epoch: called with `epoch` and what is known after it, where the training is in this
            process; epoch 0 is a closed form.
        callbacks: Ray Train callbacks, where workers train.
    """

    def __init__(
        self,
        metric: str,
        on_epoch: Callable[[dict[str, float]], None],
        callbacks: Sequence[Any] = (),
    ) -> None:
        self._metric = metric
        self._on_epoch = on_epoch
        self._callbacks = tuple(callbacks)
        self._values: dict[int, float] = {}
        self._epochs = 0
        self._took: ledger.Record | None = None

    def fit(
        self, cfg: TrainConfig, workspace: Workspace, profiles: Build, *, name: str, **further: Any
    ) -> State:
        """Fit as `train.fit` does, and keep what it took."""
        started = time.perf_counter()
        state = fit(
            cfg,
            workspace,
            profiles,
            name=name,
            callbacks=self._callbacks,
            on_record=self._told,
            **further,
        )
        seconds = time.perf_counter() - started
        self._took = ledger.of_state(state, seconds=seconds)
        for record in state["history"]:  # the last one, or all where workers trained
            self._take(record)
        return state

    def found(self) -> dict[str, Any]:
        """Return the fields of `Measured` that say what the training said and took.

        The latter are zero where it was not needed: the build was there.
        """
        took = self._took or {}
        return {
            "epochs": self._epochs,
            "history": [[epoch, value] for epoch, value in sorted(self._values.items())],
            "training_seconds": took.get("seconds", 0.0),
            "worker_seconds": took.get("worker_seconds", 0.0),
            "peak_bytes": took.get("peak_bytes", 0),
            "rows_per_s": took.get("rows_per_s", 0.0),
        }

    def _told(self, record: Mapping[str, Any]) -> None:
        if self._take(record):
            self._on_epoch({k: float(v) for k, v in record.items() if k != "phase"})

    def _take(self, record: Mapping[str, Any]) -> bool:
        """Keep what a record says; tell whether it is of a whole epoch, and new."""
        epoch = int(record["epoch"])
        whole = epoch == 0 or "time" in record
        if not whole or (epoch and epoch <= self._epochs):
            return False
        if self._metric in record:
            self._values[epoch] = float(record[self._metric])
        self._epochs = epoch
        return True
