"""Recommenders meet the users of a simulated site; the report is held against the true rates."""

import json

import numpy as np
import pyarrow as pa
import pytest

from raysys.bench.contenders import _SHALLOW
from raysys.commands.experiment_report import ExperimentReportConfig, report
from raysys.config import load
from raysys.prepare.hashing import hash_ids, unit
from raysys.reports.experiment_log import EVENT_SCHEMA, IMPRESSION_SCHEMA
from raysys.simulate.site import Site, SiteSpec
from raysys.simulate.world import WorldSpec
from raysys.store.storage import Storage
from tests.reports.test_experiment_log import write

WORLD = WorldSpec(n_users=6000, n_items=200, n_interactions=90_000, days=100, drift=0.0, seed=4)
ARMS = {"popularity": 0.4, "itemknn-20": 0.3, "ease-30": 0.3}
LENGTH = 10


def visits(site, log, rankers):
    """One visit of every user: a list by the arm of the id's hash, a click on one item or none."""
    rng = np.random.default_rng(7)
    users = np.flatnonzero(log.cells.counts > 0)
    rng.shuffle(users)
    ids = [f"u{user}" for user in users]
    drawn = unit(hash_ids(pa.array(ids), key="a salt"))
    arm = np.searchsorted(np.cumsum(list(ARMS.values())), drawn)
    impressions, events = [], []
    day = np.full(len(users), float(WORLD.days))
    for number, (name, rank) in enumerate(rankers.items()):
        own = np.flatnonzero(arm == number)
        order = own[np.argsort(users[own])]
        lists = rank(log.cells.users(users[order]), LENGTH)
        worth = site.utility(users[order], log.items[lists], day[order])
        worth = np.column_stack((worth, np.full(len(order), np.log(LENGTH) + 2.0)))
        choice = np.argmax(worth + rng.gumbel(size=worth.shape), axis=1)
        for row, items, picked in zip(order, lists, choice):
            time = log.end + 60 * int(row)
            names = [f"item-{item}" for item in items]
            impressions.append(
                {
                    "impression_id": f"i{row}",
                    "experiment": "home",
                    "arm": name,
                    "user_id": ids[row],
                    "timestamp": time,
                    "item_ids": names,
                    "weight": ARMS[name],
                }
            )
            if picked < LENGTH:
                seen = {"user_id": ids[row], "item_id": names[picked], "timestamp": time + 30}
                events.append(seen | {"event_id": f"e{row}"})
    rng.shuffle(impressions)
    return (
        pa.Table.from_pylist(events, EVENT_SCHEMA),
        pa.Table.from_pylist(impressions, IMPRESSION_SCHEMA),
    )


def test_the_report_holds_the_true_differences_of_recommenders(tmp_path):
    site = Site(SiteSpec(WORLD))
    log = site.log()
    rankers = {name: _SHALLOW[name](log.cells, log.catalogue["all"]) for name in ARMS}
    rates = dict(zip(ARMS, site.click_rates(log, list(rankers.values()), length=LENGTH, visits=1)))
    assert rates["ease-30"] > rates["itemknn-20"] > rates["popularity"] + 0.05
    events, impressions = visits(site, log, rankers)
    write(Storage(str(tmp_path)), "events", "0.parquet", events)
    write(Storage(str(tmp_path)), "impressions", "0.parquet", impressions)
    words = [f"run={tmp_path}", "name=home", "control=popularity", "window_s=3600"]
    found = report(load(ExperimentReportConfig, words))
    for each in found.extra["comparisons"]:
        truth = rates[each["arm"]] - rates["popularity"]
        assert each["better"] == each["arm"]
        assert 0 < each["low"] < truth < each["high"]
        assert each["outcome"]["low"] < truth < each["outcome"]["high"]
    for name, rate in rates.items():
        assert found.metrics[name]["ci_low"] < rate < found.metrics[name]["ci_high"]
    record = json.loads((tmp_path / "reports/experiment-home.json").read_text())
    for each in record["comparisons"]:
        truth = rates[each["arm"]] - rates["popularity"]
        assert all(step["low"] < truth < step["high"] for step in each["steps"])
        assert each["decided_at"] < 4000
    assert record["split"]["p_value"] > 0.01
    assert sum(arm["users"] for arm in record["arms"]) == pytest.approx(6000, abs=5)
