"""The answer suite on a grown run of a model that is not trained."""

import numpy as np
import pytest

from raysys.bench import answer
from raysys.bench.grown_run import grow_run
from raysys.cluster.connect import RayConfig
from raysys.search.query import RecommendQuery
from raysys.search.search import Search
from raysys.store.builds import Workspace
from tests.support.runs import model_run


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    model_run(folder)
    return folder


def test_a_grown_run_keeps_the_real_items_and_users(source, tmp_path):
    settings = {"n_users": 50, "seed": 0, "ray": RayConfig()}
    workspace = grow_run(str(source), str(tmp_path / "run"), n_items=90, **settings)
    grown, real = Search.open(workspace), Search.open(Workspace(str(source)))
    assert (grown.n_items, grown.n_users) == (90, 50)
    one, again = grown.engine, real.engine
    history = real.asking.history(RecommendQuery(user_id=real._users._ids.texts[7]))[0]
    mine = grown.asking.history(RecommendQuery(user_id="user-7"))[0]
    np.testing.assert_array_equal(mine.item_num, history.item_num)
    z = one.encode(mine)
    vectors = one.scorer.vectors(np.arange(60))
    np.testing.assert_allclose(vectors, again.scorer.vectors(np.arange(60)), atol=0.05)
    assert grow_run(str(source), str(tmp_path / "run"), n_items=90, **settings).has("index")
    assert z.shape[1] == again.encode(history).shape[1]


def test_the_suite_has_a_row_for_every_ranking_and_one_for_the_replica(source, tmp_path):
    cfg = answer.AnswerBenchConfig(source=str(source), sizes=[80], users=30, keep=str(tmp_path))
    rows = answer.rows(cfg)
    assert [row.get("ranking") for row in rows] == ["consume", "rating", "like", "discover", None]
    assert all(row["whole_ms"] > 0 and row["search_ms"] > 0 for row in rows[:-1])
    assert rows[-1]["private_mb"] > 0
    assert rows[-1]["walk_ms"] > 0
    assert {row["n_items"] for row in rows} == {80}
    assert rows[-1]["n_users"] == 30
    assert (tmp_path / "80-items-30-users" / "index").is_dir()
