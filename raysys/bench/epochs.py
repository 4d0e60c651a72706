"""Epochs of a peer's network, as many as its figure on val asks for."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from torch import nn

log = logging.getLogger(__name__)

_PATIENCE = 3

Ranked = TypeVar("Ranked")


def train_epochs(
    model: nn.Module,
    epoch: Callable[[], float],
    ranked: Ranked,
    score: Callable[[Ranked], float] | None,
    name: str,
    epochs: int,
    seconds: float,
) -> int:
    """Train until no epoch helps any more; leave the best state and return its number of epochs.

    Args:
        model: whose state is kept.
        epoch: trains once over everything and returns the loss.
        ranked: ranks by the model as it is.
        score: on val, after each epoch; training ends where it has not risen for some epochs.
            None: all epochs are trained.
        name: of the network, for the log.
        epochs: at most.
        seconds: no epoch begins that would end later, at the pace of those before.
    """
    started = time.monotonic()
    best, top, state = 0, -np.inf, model.state_dict()
    for number in range(1, epochs + 1):
        loss = epoch()
        spent = time.monotonic() - started
        value = float(number) if score is None else score(ranked)
        log.info("%s epoch=%d loss=%.4f score=%.4f seconds=%.0f", name, number, loss, value, spent)
        if value > top:
            best, top, state = number, value, copy.deepcopy(model.state_dict())
        late = (time.monotonic() - started) * (number + 1) / number > seconds
        if number - best >= _PATIENCE or late:
            break
    model.load_state_dict(state)
    return best
