"""The tables of a simulated experiment: users of very unequal activity whose habits drift.

    impressions   1..100 a user, Pareto of index 1.2: a few users have a hundred times those of most
    chance        Beta, a user's own, times (1 + drift sin(2 pi t / days)), times (1 + lift) in arms
    event         on one item of the impression, after an exponential delay

Arms are drawn by a generator here; a service draws them by a hash of the user.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raysys.simulate.world import DAY, START

_PARETO = 1.2
_MOST = 100
_BETA = 0.5  # users between whom chances differ a lot
_LENGTH = 5  # of a list
_DELAY_S = 6 * 3600.0
_PER_DAY = 4.0  # impressions of a user, once begun


@dataclasses.dataclass(frozen=True)
class ExperimentSpec:
    """An experiment.

    Attributes:
        arms: {name: (configured weight, lift of the chance to convert)}.
        n_users: that come, evenly over the days.
        rate: mean chance that an impression converts.
        drift: 0..1, how far chances move over the days.
        days: that users come over.
        split: {name: weight} that users are really drawn by; None: the configured ones.
        seed: of everything.
    """

    arms: dict[str, tuple[float, float]]
    n_users: int = 2000
    rate: float = 0.1
    drift: float = 0.5
    days: float = 14.0
    split: dict[str, float] | None = None
    seed: int = 0


def experiment_tables(spec: ExperimentSpec, *, name: str = "home") -> tuple[pa.Table, pa.Table]:
    """Return the tables events and impressions of one experiment; its ids begin with its name."""
    rng = np.random.default_rng([spec.seed, 8])
    names = list(spec.arms)
    weights = np.array([weight for weight, _ in spec.arms.values()])
    lifts = np.array([lift for _, lift in spec.arms.values()])
    drawn_by = weights if spec.split is None else np.array([spec.split[arm] for arm in names])
    arm = rng.choice(len(names), spec.n_users, p=drawn_by / drawn_by.sum())
    shown = np.minimum(1 + rng.pareto(_PARETO, spec.n_users), _MOST).astype(np.int64)
    own = rng.beta(_BETA, _BETA / spec.rate - _BETA, spec.n_users)
    begun = np.sort(rng.random(spec.n_users)) * spec.days
    user = np.repeat(np.arange(spec.n_users), shown)
    opening = np.concatenate(([0], np.cumsum(shown)[:-1]))
    pauses = rng.exponential(1 / _PER_DAY, len(user))
    pauses[opening] = 0
    since = np.cumsum(pauses)
    day = begun[user] + since - np.repeat(since[opening], shown)
    moved = 1 + spec.drift * np.sin(2 * np.pi * day / spec.days)
    chance = np.clip(own[user] * moved * (1 + lifts[arm[user]]), 0, 1)
    items = rng.integers(0, 50, (len(user), _LENGTH))
    converts = np.flatnonzero(rng.random(len(user)) < chance)
    time = START + (day * DAY).astype(np.int64)
    after = rng.exponential(_DELAY_S, len(converts)).astype(np.int64)
    picked = items[converts, rng.integers(0, _LENGTH, len(converts))]
    impressions = pa.table(
        {
            "impression_id": _names(f"{name}-i", np.arange(len(user))),
            "experiment": pa.array([name] * len(user), pa.string()),
            "arm": pa.array(names, pa.string()).take(pa.array(arm[user])),
            "user_id": _names(f"{name}-u", user),
            "timestamp": time,
            "item_ids": _lists(items),
            "ranking": pa.array(["consume"] * len(user), pa.string()),
            "build_id": pa.array([f"of-{arm}" for arm in names]).take(pa.array(arm[user])),
            "weight": weights[arm[user]],
        }
    )
    events = pa.table(
        {
            "event_id": _names(f"{name}-e", np.arange(len(converts))),
            "user_id": _names(f"{name}-u", user[converts]),
            "item_id": _names("item-", picked),
            "event": pa.array(["purchase"] * len(converts), pa.string()),
            "rating": pa.nulls(len(converts), pa.float64()),
            "timestamp": time[converts] + after,
        }
    )
    return events, impressions


def _names(prefix: str, numbers: NDArray[np.int64]) -> pa.Array:
    texts = [f"{prefix}{number}" for number in range(int(numbers.max(initial=-1)) + 1)]
    return pa.array(texts, pa.string()).take(pa.array(numbers))


def _lists(items: NDArray[np.int64]) -> pa.Array:
    offsets = np.arange(0, items.size + 1, items.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), _names("item-", items.ravel()))
