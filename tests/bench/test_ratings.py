"""The ratings suite: its folds, its planted logs, and what its settings change."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.bench import ratings
from raysys.config import load
from raysys.errors import ConfigError


@pytest.fixture
def measured(monkeypatch):
    """Replace training by rows that tell what was asked; return what was."""
    asked = []

    def rows(table, held_out, split, folder, cfg):
        asked.append((len(table), held_out, split))
        ours = {"method": "raysys", "rmse": 0.8 + 0.01 * split, "nll": 1.0, "factors": 16}
        return [ours, {"method": "bias", "rmse": 0.9}]

    monkeypatch.setattr(ratings, "_measured", rows)
    return asked


def test_ratings(measured, monkeypatch, tmp_path):
    monkeypatch.setattr(ratings, "_USERS", 20)
    monkeypatch.setattr(ratings, "_ITEMS", 30)
    monkeypatch.setattr(ratings, "_PER_USER", 10)
    columns = {name: pa.array(["a", "b"]) for name in ("user_id", "item_id")}
    columns |= {"rating": pa.array([1.0, 2.0]), "timestamp": pa.array([1, 2])}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    words = [f"run={tmp_path}", f"source={tmp_path / 'log.parquet'}", "splits=3", "factors=[2]"]
    cfg = load(ratings.RatingsBenchConfig, [*words, "data=ml-1m", "held_out=0.1"])
    planted, *rows = ratings.rows(cfg)
    assert measured == [(200, 0.1, 0), (2, 0.1, 0), (2, 0.1, 1), (2, 0.1, 2)]
    assert (planted["planted"], planted["chosen"], planted["bias"]) == (2, 16, 0.9)
    assert 0.8 < planted["floor"] < 0.9  # the noise, and rounding
    mean = next(row for row in rows if row["split"] == "mean of 3" and row["method"] == "raysys")
    assert mean["rmse"] == pytest.approx(0.81)
    others = [row["method"] for row in rows if "from" in row]
    assert others == ["GLocal-K", "I-AutoRec"]
    cfg = load(ratings.RatingsBenchConfig, [*words, "data=own", "held_out=0.2", "splits=1"])
    assert not [row for row in ratings.rows(cfg) if "from" in row]
    assert measured[-1] == (2, 0.2, 0)


def test_folds_have_their_shares_and_differ_from_split_to_split():
    one, two = (ratings.folds(20_000, 0.2, (0, split)) for split in (0, 1))
    assert np.mean(one == "test") == pytest.approx(0.2, abs=0.01)
    assert np.mean(one == "val") == pytest.approx(0.04, abs=0.005)
    assert np.mean(one != two) > 0.2


@pytest.mark.parametrize("words", [["held_out=0"], ["splits=0"], ["factors=[-1]"]])
def test_settings_that_make_no_log(words, tmp_path):
    with pytest.raises(ConfigError, match=words[0].partition("=")[0]):
        load(ratings.RatingsBenchConfig, [f"run={tmp_path}", *words])
