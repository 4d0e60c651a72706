"""The plan of large logs follows from records."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks import render, scale
from benchmarks.scale import Assumed, Log, Rates, stages
from raysys.errors import DataError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def records():
    return render.read(ROOT / "benchmarks" / "results")


def hours(log, rates, **assumed):
    return {stage.name: stage for stage in stages(log, rates, Assumed(**assumed))}


def test_rates_are_those_of_records(records):
    rates = Rates.of(records)
    rest, profile, items = rates.step_ms
    assert rest + 4096 * profile + items == pytest.approx(24.2, rel=0.01)  # of the H200's record
    n, seconds, growth = rates.indexed
    assert seconds * (10**6 / n) ** growth == pytest.approx(59, rel=1e-6)  # of the scale record


def test_a_plan_grows_with_the_log(records):
    rates = Rates.of(records)
    one = hours(Log(10**8, 10**6, 10**6), rates)
    more_rows = hours(Log(10**9, 10**6, 10**6), rates)
    assert more_rows["prepare"].core_h == pytest.approx(10 * one["prepare"].core_h)
    assert more_rows["train"].gib > 5 * one["train"].gib
    more_users = hours(Log(10**8, 10**7, 10**6), rates)
    assert more_users["train"].gpu_h == pytest.approx(10 * one["train"].gpu_h, rel=0.02)
    more_items = hours(Log(10**8, 10**6, 10**7), rates)
    assert more_items["codes"].core_h == pytest.approx(10 * one["codes"].core_h)
    assert more_items["index"].core_h > 10 * one["index"].core_h


def test_weights_beyond_a_gpu_are_named_as_the_limit(records):
    rates = Rates.of(records)
    assert hours(scale.LOGS[0], rates)["train"].limit == "all cells in each worker"
    assert "not built" in hours(scale.LOGS[1], rates)["train"].limit


def test_more_nodes_are_quicker_and_cost_the_same(records):
    rates = Rates.of(records)
    few, many = (hours(scale.LOGS[0], rates, nodes=n)["evaluate"] for n in (4, 8))
    assert few.hours == pytest.approx(2 * many.hours)
    assert few.core_h == many.core_h


def test_a_volume_record_says_how_fast_rows_are_prepared(records):
    known = next(record for record in records if record.suite == "prepare")
    rows = [{"step": "prepare", "rows": n, "rows_per_cpu_s": n // 100} for n in (1000, 9000)]
    newer = dataclasses.replace(known, suite="volume", rows=rows)
    assert Rates.of([newer, *records]).prepared == 90
    with pytest.raises(DataError, match="no record of suite volume or prepare"):
        scale._prepared([])
