"""What it saves to begin a training at last week's model: epochs and seconds to the cold metric.

    python tests/long/refresh_starts.py RUN [--weeks 4] [--latent 512]

RUN holds profiles of a log that is split in time (movietweetings-2013). The test period stays
unread: windows of a week end with the validation period. For each week a model is fitted on all
before it, validated on it, cold and beginning at the week before's cold model, which saw nothing of
the window. A line says for each head when the cold run was at its best, when the warm one was
there, in epochs and seconds of epochs (epoch 0 is the closed form), and the best of both.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.task import AutoencoderTask
from raysys.autoencoder.validation import NLL, RECALL
from raysys.autoencoder.warm_start import Beginning
from raysys.data.profiles import Profiles
from raysys.data.schema import Window
from raysys.store.builds import Workspace
from raysys.training.loop import train
from raysys.training.optim import OptimConfig
from raysys.training.task import Ranks, State

WEEK = 7 * 86_400


def fitted(
    profiles: Profiles, cells, cut: int, latent: int, begin: Beginning | None
) -> tuple[State, list[dict]]:
    """Fit on the rows before a cut, validated on the week behind it; return what was reported."""
    kept = cells.take(cells.timestamp < cut + WEEK)
    window = np.where(kept.timestamp >= cut, Window.VAL, Window.FIT).astype(np.uint8)
    first = profiles.items["first_seen"].to_numpy()
    facts = dataclasses.replace(
        profiles.facts,
        catalogue={**profiles.facts.catalogue, "val": int((first < cut).sum())},
        cutoffs={"val": cut, "test": cut + WEEK},
    )
    task = functools.partial(
        AutoencoderTask,
        dataclasses.replace(profiles, facts=facts),
        Conv4RecConfig(latent=latent),
        cells=dataclasses.replace(kept, window=window),
        period="val",
        seed=0,
        validated=True,
        begin=begin,
    )
    records: list[dict] = []
    ranks = Ranks(save=lambda record, _: records.append(dict(record)))
    state = train([task], OptimConfig(batch_size=512), seed=0, ranks=ranks)
    return state, records + state["history"][-1:]


def reached(records: list[dict], name: str, value: float) -> tuple[int | None, float]:
    """Return the epoch at which a metric is as good as a value, and the seconds of epochs."""
    seconds = 0.0
    for record in records:
        seconds += record.get("seconds", 0.0)
        better = record.get(name, np.nan) <= value if name == NLL else record.get(name, 0) >= value
        if better:
            return int(record["epoch"]), seconds
    return None, seconds


def main() -> int:
    """Print a line a week and head."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("--weeks", type=int, default=4)
    parser.add_argument("--latent", type=int, default=512)
    asked = parser.parse_args()
    profiles = Profiles.open(Workspace(asked.run).current("profiles"))
    cells = profiles.cells([Window.FIT, Window.VAL])
    assert profiles.facts.cutoffs is not None
    last = profiles.facts.cutoffs["test"]
    before: Beginning | None = None
    for number in range(-1, asked.weeks):
        cut = last - (asked.weeks - number) * WEEK
        cold, cold_records = fitted(profiles, cells, cut, asked.latent, None)
        if before is not None:
            warm, warm_records = fitted(profiles, cells, cut, asked.latent, before)
            for name, best_of in ((RECALL, max), (NLL, min)):
                best = best_of(record[name] for record in cold_records if name in record)
                own = reached(cold_records, name, best)
                epochs, seconds = reached(warm_records, name, best)
                values = [r[name] for r in warm_records if name in r]
                found = {
                    "week": number,
                    "metric": name,
                    "cold": [best, *own],
                    "warm": [best_of(values), epochs, seconds],
                    "cold_seconds": {k: round(v, 1) for k, v in cold["seconds"].items()},
                    "warm_seconds": {k: round(v, 1) for k, v in warm["seconds"].items()},
                    "cold_epochs": cold["history"][-1]["epoch"] if cold["history"] else 0,
                    "warm_epochs": warm["history"][-1]["epoch"] if warm["history"] else 0,
                }
                print(json.dumps(found), flush=True)
        before = Beginning(cold["model"], solved=cold["epochs"].get(RECALL) == 0)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
