"""Offline-online agreement on tables with known answers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from raysys.bench.agreement_measures import agreement, best_exponents, read_table
from raysys.errors import DataError


def table(**columns):
    rows = {
        "system": ["a", "a", "a", "b", "b", "b"],
        "model": ["x", "y", "z"] * 2,
        "ctr": [0.1, 0.2, 0.4, 0.5, 0.3, 0.1],
    }
    return pa.table(rows | columns)


def test_the_three_figures_of_known_cells():
    found = agreement(
        table(good=[1, 2, 3, 3, 2, 1], bad=[3, 2, 1, 1, 2, 3], half=[1, 2, 3, 1, 2, 3]),
        online="ctr",
        system="system",
    )
    by_name = {entry.metric: entry for entry in found}
    assert list(by_name) == ["good", "bad", "half"]
    assert by_name["good"].selection_recall == {"mean": 1, "ci_low": 1, "ci_high": 1}
    assert by_name["good"].kendall_tau["mean"] == 1
    assert by_name["good"].regret["mean"] == 0
    assert by_name["bad"].selection_recall["mean"] == 0
    assert by_name["bad"].kendall_tau["mean"] == -1
    assert by_name["bad"].regret["mean"] == pytest.approx((0.75 + 0.8) / 2)
    half = by_name["half"]
    assert (half.picked, half.cells, half.chance) == (1, 2, pytest.approx(1 / 3))
    assert half.selection_recall == {"mean": 0.5, "ci_low": 0, "ci_high": 1}


def test_all_cuts_of_one_metric_are_joined():
    columns = {"recall@1^0.3": [1, 2, 3, 3, 2, 1], "recall@20^0.3": [3, 2, 1, 3, 2, 1]}
    [entry] = agreement(table(**columns), online="ctr", system="system")
    assert entry.metric == "recall@K^0.3"
    assert (entry.cells, entry.picked) == (4, 3)


def test_ties_count_in_parts():
    [entry] = agreement(table(m=[2, 1, 2, 5, 5, 5]), online="ctr", system="system")
    assert entry.picked == pytest.approx(1 / 2 + 1 / 3)


def test_one_system_has_no_interval_and_constant_metrics_no_tau():
    [entry] = agreement(table(m=[1.0] * 6).drop(["system"]), online="ctr")
    assert entry.selection_recall["ci_low"] is None
    assert entry.kendall_tau["mean"] is None


def test_chance_metrics_pick_at_chance():
    rng = np.random.default_rng(0)
    n = 400
    found = agreement(
        pa.table(
            {
                "system": np.repeat(np.arange(n), 5),
                "ctr": rng.random(5 * n),
                **{f"recall@{k}": rng.random(5 * n) for k in range(1, 4)},
            }
        ),
        online="ctr",
        system="system",
    )
    recall = found[0].selection_recall
    assert recall["ci_low"] < 0.2 < recall["ci_high"]
    assert recall["ci_high"] - recall["ci_low"] < 0.08


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_are_read(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    made = table(m=[1.5, 2, 3, 3, 2, 1])
    pc.write_csv(made, path) if suffix == "csv" else pq.write_table(made, path)
    [entry] = agreement(read_table(path), online="ctr", system="system")
    assert entry.picked == 2


def test_unusable_tables_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"t\.txt: expected a \.csv or \.parquet"):
        read_table(tmp_path / "t.txt")
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path / "missing.csv")
    with pytest.raises(DataError, match="no column 'clicks' among system, model, ctr, m"):
        agreement(table(m=[1] * 6), online="clicks", system="system")
    with pytest.raises(DataError, match="column 'ctr' has no number in row 1"):
        agreement(pa.table({"ctr": [1.0, None], "m": [1, 2]}), online="ctr")
    with pytest.raises(DataError, match="'model' is not numeric"):
        agreement(table(), online="ctr", system="system", metrics=["model"])
    with pytest.raises(DataError, match="system='c' holds 1 model"):
        agreement(
            pa.table({"system": ["c"], "ctr": [1.0], "m": [1]}), online="ctr", system="system"
        )


def test_gains_are_paired_with_the_reference():
    columns = {"m@1": [1, 2, 3, 3, 2, 1], "n@1": [1, 2, 3, 1, 2, 3]}
    found = agreement(table(**columns), online="ctr", system="system", reference="n@K")
    assert [entry.gain["mean"] for entry in found] == [0.5, 0]
    assert found[0].gain["ci_low"] == 0
    assert found[1].gain["ci_high"] == 0
    with pytest.raises(DataError, match="no metric 'n@1' among m@K, n@K"):
        agreement(table(**columns), online="ctr", system="system", reference="n@1")


def test_the_best_exponent_and_those_as_good():
    rng = np.random.default_rng(1)
    n = 300
    ctr = rng.random((n, 5))
    noise = {0.0: 1.0, 0.3: 0.05, 0.4: 0.05, 1.0: 1.0}
    columns = {f"recall@5^{b:g}": (ctr + s * rng.normal(size=ctr.shape)) for b, s in noise.items()}
    rows = {"system": np.repeat(np.arange(n), 5), "ctr": ctr.ravel()}
    rows |= {name: values.ravel() for name, values in columns.items()}
    [best] = best_exponents(pa.table(rows), online="ctr", system="system")
    assert best.family == "recall@K"
    assert best.beta in (0.3, 0.4)
    assert best.as_good == (0.3, 0.4)
    assert set(best.drawn) <= {0.3, 0.4}
    assert best_exponents(table(m=[1] * 6), online="ctr", system="system") == []
