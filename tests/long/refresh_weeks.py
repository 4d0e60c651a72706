"""Twenty weeks of a planted world, a refresh each, two of them poisoned: what is published is good.

    python tests/long/refresh_weeks.py [--weeks 20] [--users 1500] [--run FOLDER]

The first eight weeks are the log that the pipeline is run on. Then every week is a file and a
refresh. In one week the ratings are shuffled among the rows, in another the items. The world
knows what every user would take next (`World.consumption`), so the true quality of a model is known
without noise but for the choice of users: the mean probability that the next item is in its list of
20. A line a week says what the gate decided and what the truth is. Then

    no poisoned week was published
    no published model is truly worse than the one before it by more than the gate's noise
    every refused week that was not poisoned is named

Exit status 1 where one of the first two does not hold. `movietweetings_weeks.py` measures starts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from raysys.cluster.tasks import alone
from raysys.commands import prepare as prepare_command
from raysys.commands import refresh as refresh_command
from raysys.commands.refresh import RefreshConfig, refresh
from raysys.data.profiles import Profiles
from raysys.reports import refreshes
from raysys.reports.methods import ModelMethod, Subject
from raysys.simulate.world import World, WorldSpec
from raysys.store.builds import Workspace
from tests.support.weeks import LAUNCH, first_run, shuffled, weeks_of

BASE_WEEKS = 8
RATINGS, ITEMS = 5, 9  # weeks that are poisoned
SHOWN = 20
MODEL = {"latent": 64, "level_latent": 16}
OPTIM = {"batch_size": 256, "epochs": 4}


def truth(
    world: World, workspace: Workspace, model: str, profiles: tuple[str, str], day: float
) -> np.ndarray:
    """Return every sampled user's probability that the next item is in the list, [U].

    Args:
        world: that knows it.
        workspace: the run.
        model: build_id of an autoencoder.
        profiles: build_ids: of the histories, and of all items that the model may know.
        day: of the log.
    """
    build = workspace.open("autoencoder", model)
    histories = Profiles.open(workspace.open("profiles", profiles[0]))
    items = Profiles.open(workspace.open("profiles", profiles[1])).items["item_id"].to_pylist()
    method = ModelMethod(
        Subject(build, build, workspace.open("profiles", profiles[1])), ranking=None
    )
    cells = histories.cells()
    known = cells.users(np.flatnonzero(cells.counts >= 5)[:400])
    lists = method.rank(known, SHOWN)
    place = {item: number for number, item in enumerate(world.item_ids())}
    number = np.array([place[item] for item in items])
    found = []
    for row, seen in enumerate(known.item_lists):
        user = histories.user_ids[int(known.user_num[row])].as_py()
        chance = world.consumption(user, day=day)
        chance[number[seen]] = 0
        shown = lists[row][lists[row] >= 0]
        found.append(chance[number[shown]].sum() / chance.sum())
    return np.array(found)


def week(world: World, run: str, number: int, rows: pa.Table) -> tuple[str, float, bool]:
    """Refresh with rows; return a line, the true loss beyond noise, whether it was published."""
    workspace = Workspace(run)
    before = {k: workspace.current(k).build_id for k in ("autoencoder", "profiles")}
    logs = Path(run).parent / "weeks"  # a week that waits is taken with the next one
    logs.mkdir(exist_ok=True)
    pq.write_table(rows, logs / f"{number:02d}.parquet")
    started = time.perf_counter()
    refresh(RefreshConfig(run=run, source=str(logs), launch=LAUNCH))
    seconds = time.perf_counter() - started
    decision = refreshes.read(workspace.storage)[-1]
    day = (BASE_WEEKS + number + 1) * 7.0
    profiles = before["profiles"], decision.after["profiles"]
    old, new = (
        truth(world, workspace, model, profiles, day)
        for model in (before["autoencoder"], decision.after["autoencoder"])
    )
    gain, noise = float((new - old).mean()), float((new - old).std() / len(old) ** 0.5)
    judged = " ".join(
        f"{name} {m['served']:.4f}->{m['candidate']:.4f} ({m['ci_low']:+.4f}..{m['ci_high']:+.4f})"
        for name, m in decision.metrics.items()
    )
    line = (
        f"week={number:2d} rows={len(rows)} {decision.decision:9s} truth {old.mean():.4f}->"
        f"{new.mean():.4f} ({gain - 2 * noise:+.4f}..{gain + 2 * noise:+.4f}) gate {judged} "
        f"seconds={seconds:.0f} {decision.reason}"
    )
    lead = next(iter(decision.metrics.values()), {"ci_low": 0.0, "ci_high": 0.0, "served": 1.0})
    allowed = (lead["ci_high"] - lead["ci_low"]) / 2 / lead["served"]  # noise of the gate, relative
    loss = -(gain + 2 * noise) / old.mean()  # at least, relative
    return line, loss - allowed, decision.decision == refreshes.PUBLISHED


def main() -> int:
    """Run the weeks and say whether the rules hold."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weeks", type=int, default=20)
    parser.add_argument("--users", type=int, default=1500)
    parser.add_argument("--run")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    folder = Path(asked.run or tempfile.mkdtemp(prefix="raysys-weeks-"))
    print(folder, flush=True)
    days = 7 * (BASE_WEEKS + asked.weeks)
    spec = WorldSpec(
        n_users=asked.users,
        n_items=600,
        n_interactions=asked.users * 60,
        days=days,
        seed=asked.seed,
    )
    world, broken, false_alarms = World.make(spec), [], []
    tables = weeks_of(world)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(tables[:BASE_WEEKS]), folder / "base.parquet")
    run = f"{folder}/run"
    with contextlib.ExitStack() as session:
        session.enter_context(alone())  # nothing here is worth a cluster
        for module in (prepare_command, refresh_command):
            session.enter_context(mock.patch.object(module, "connected", contextlib.nullcontext))
        first_run(run, folder / "base.parquet", MODEL, OPTIM)
        for number in range(asked.weeks):
            rows = tables[BASE_WEEKS + number]
            kinds = {RATINGS: ("rating",), ITEMS: ("item_id",)}.get(number, ())
            line, loss, taken = week(world, run, number, shuffled(rows, kinds, asked.seed + number))
            print(f"{line}{' POISONED: ' + ', '.join(kinds) if kinds else ''}", flush=True)
            if taken and kinds:
                broken.append(f"week {number} was poisoned and published")
            if taken and loss > 0:
                broken.append(f"week {number} published a model worse by {loss:.1%} beyond noise")
            if not taken and not kinds:
                false_alarms.append(number)
    print(json.dumps({"broken": broken, "refused_though_sound": false_alarms}))
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
