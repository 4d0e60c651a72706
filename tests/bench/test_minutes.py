"""The minutes suite: EASE in both forms, and a small log from end to end."""

import numpy as np
import pytest

from raysys.bench import minutes
from raysys.bench.minutes import MinutesBenchConfig, ease, rows
from raysys.data.cells import Cells
from raysys.errors import DataError
from raysys.evaluation.presence import presence


@pytest.mark.parametrize("n_users", [6, 40])
def test_ease_is_its_textbook_form_on_either_side(n_users):
    rng = np.random.default_rng(1)
    lists = [[(int(i), 0) for i in rng.permutation(12)[:4]] for _ in range(n_users)]
    train, history = Cells.from_lists(lists), Cells.from_lists(lists[:3])
    x = presence(train, 12).toarray()
    inverse = np.linalg.inv(x.T @ x + 5 * np.eye(12))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    past = presence(history, 12).toarray()
    outside = past == 0
    scores = ease(train, 12, penalty=5.0)(history).numpy()
    np.testing.assert_allclose(scores[outside], (past @ weights)[outside], atol=1e-4)


@pytest.mark.ray
def test_a_row_per_log_and_engine(ray_cluster, tmp_path, monkeypatch):
    world = {"n_users": 80, "n_items": 60, "n_interactions": 1200}
    monkeypatch.setitem(minutes.WORLDS, "small", world)
    found = rows(MinutesBenchConfig(run=str(tmp_path), logs=["small"], suite="minutes"))
    assert [row["engine"] for row in found][:2] == ["raysys", "EASE"]
    assert all(row["log"] == "small" and 0 < row["recall@20"] <= 1 for row in found)
    assert found[0]["ray_s"] > 0


def test_logs_are_files_of_the_data_folder(tmp_path):
    cfg = MinutesBenchConfig(run=str(tmp_path), logs=["mine"], data="nowhere")
    with pytest.raises(DataError) as error:
        minutes._log_rows(cfg, "mine", str(tmp_path / "run"), 0.0)
    assert "nowhere/mine/interactions.parquet" in str(error.value)
