"""How long a trial's service takes to answer, on this machine and in this process."""

from __future__ import annotations

import time

import numpy as np

from raysys.data.profiles import Profiles
from raysys.data.schema import period_windows
from raysys.search.search import Search
from raysys.search.served import Served
from raysys.store.builds import Workspace

_ASKED = 200
_ROUNDS = 3
_TOP_K = 20
_PURPOSE = 0xA5


def answer_ms(workspace: Workspace, *, seed: int) -> float:
    """Return the median time in ms of a list of 20 for a user of the validation period.

    It is the CPU time of one thread, the best of three after one that is not counted, over at most
    200 users: latents, candidates of the current index, exact scores. It compares settings on one
    machine; another machine has other times.

    Args:
        workspace: its current index is asked.
        seed: draws the users.
    """
    served = Served.open(workspace, verify=False)
    engine = Search(served, users=False).engine
    assert served.coded.profiles is not None, "a trial has a model"
    assert engine.scorer is not None
    profiles = Profiles.open(served.coded.profiles)
    windows = period_windows(profiles.facts.split, "val").history
    cells = profiles.cells(windows)
    cells = cells.take(cells.item_num < engine.scorer.n_items)
    rows = np.flatnonzero(cells.counts)
    asked = np.random.default_rng([seed, _PURPOSE]).permutation(rows)[:_ASKED]
    histories = [cells.users(asked[n : n + 1]) for n in range(len(asked))]
    top_k = min(_TOP_K, engine.scorer.n_items)
    times = np.empty((1 + _ROUNDS, len(histories)))
    for turn in range(len(times)):
        for n, history in enumerate(histories):
            started = time.thread_time()
            engine.rank(history, top_k=top_k)
            times[turn, n] = time.thread_time() - started
    return round(float(np.median(times[1:].min(axis=0))) * 1e3, 4)
