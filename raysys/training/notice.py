"""Learns in time that a host of the training is to be taken away, so that its work is saved."""

from __future__ import annotations

import logging
import time

import torch

from raysys.training.task import Ranks

log = logging.getLogger(__name__)

_EVERY_S = 1.0  # asking is a meeting of all ranks
_SAVE_EVERY = 10  # questions, until the host is gone


class Notice:
    """Asks about once a second, after the same steps on all ranks.

    Attributes:
        pending: a host is to be taken away, and it is time to save.
    """

    def __init__(self, ranks: Ranks, *, wanted: bool) -> None:
        """Begin to ask, unless that is not wanted or there is nobody to be asked."""
        self._ranks = ranks
        self._asking = wanted and ranks.warned is not None
        self._steps, self._until, self._since_told = 0, 1, -1
        self._since = time.perf_counter()
        self.pending = False

    def after_step(self) -> None:
        """Ask where it is time to; it has to be called after every step."""
        self._steps += 1
        if not self._asking or self._steps < self._until:
            return
        if self._since_told >= 0:
            self._since_told += 1
            self.pending = self.pending or self._since_told % _SAVE_EVERY == 0
        elif self._ranks.warned is not None and self._ranks.warned():
            self.pending, self._since_told = True, 0
            log.warning("a host is to be taken away: saving now, and again until it is gone")
        now = time.perf_counter()
        pace = self._steps / max(now - self._since, 1e-6)
        steps = torch.zeros(1, dtype=torch.float64, device=self._ranks.device)
        steps += pace * _EVERY_S if self._ranks.rank == 0 else 0.0  # one rank's clock for all
        self._ranks.total(steps)
        self._steps, self._until, self._since = 0, max(1, int(steps)), now
