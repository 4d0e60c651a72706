import json

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from raysys.cluster import tasks
from raysys.commands import score as score_module
from raysys.commands.score import SCORES_SCHEMA, ScoreConfig, score
from raysys.errors import BuildError, ConfigError, SearchError, find_cause
from raysys.search.query import RecommendQuery
from raysys.search.search import Search
from tests.support.runs import item_id, model_run, user_id, vectors_run


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    workspace, _ = model_run(folder)
    return folder, Search.open(workspace)


@pytest.fixture
def here(monkeypatch):
    """Return the shards that were scored, in this process."""
    ran = []
    score_shard = score_module._score_shard

    def noted(task):
        ran.append(task.shard)
        return score_shard(task)

    monkeypatch.setattr(score_module, "_score_shard", noted)
    return ran


def config(planted, tmp_path, **settings):
    return ScoreConfig(run=str(planted[0]), output=str(tmp_path / "scores"), **settings)


def check_against_search(output, search, *, top_k, ranking=None, **query):
    table = pq.read_table(output)
    assert table.schema.equals(SCORES_SCHEMA)
    by_user = {}
    for row in table.to_pylist():
        by_user.setdefault(row["user_id"], []).append(row)
    assert list(by_user) == [user_id(num) for num in range(20)]
    for user, rows in by_user.items():
        answer = search.recommend(RecommendQuery(user_id=user, k=top_k, ranking=ranking))
        assert [row["item_id"] for row in rows] == [hit.item_id for hit in answer.items]
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
        for name in ("score", "p_consume", "p_like", "expected_rating"):
            expected = [getattr(hit, name) for hit in answer.items]
            np.testing.assert_allclose([row[name] for row in rows], expected, rtol=1e-5, atol=1e-6)
    return table


@pytest.mark.parametrize(("ranking", "batch_users"), [(None, 1024), ("discover", 3)])
def test_every_users_list_is_what_the_service_answers(
    planted, tmp_path, here, ranking, batch_users
):
    cfg = config(planted, tmp_path, top_k=7, ranking=ranking, batch_users=batch_users)
    result = score(cfg)
    table = check_against_search(tmp_path / "scores", planted[1], top_k=7, ranking=ranking)
    assert result.extra["rows"] == table.num_rows == 20 * 7
    assert result.extra["output"] == str(tmp_path / "scores")
    assert result.build_ids["index"] == planted[1].build_id
    names = sorted(path.name for path in (tmp_path / "scores").iterdir())
    assert names == ["_scores.json", "scores-00000.parquet", "scores-00001.parquet"]


@pytest.mark.parametrize("settings", [{"gamma": 0.0}, {"gamma": 3.0}, {"exclude_seen": False}])
def test_settings_of_the_ranking_reach_the_lists(planted, tmp_path, here, settings):
    score(config(planted, tmp_path, top_k=9, ranking="discover", **settings))
    table = pq.read_table(tmp_path / "scores")
    lists = [table.filter(pc.equal(table["user_id"], user_id(num))) for num in range(20)]
    plain = RecommendQuery(user_id=user_id(15), k=9, ranking="discover")
    asked = plain.model_copy(update=settings)
    answers = [[hit.item_id for hit in planted[1].recommend(q).items] for q in (plain, asked)]
    assert answers[0] != answers[1] == lists[15]["item_id"].to_pylist()


def test_an_interrupted_run_keeps_what_is_finished(planted, tmp_path, here):
    cfg = config(planted, tmp_path, top_k=5)
    score(cfg)
    kept = tmp_path / "scores" / "scores-00000.parquet"
    before = kept.stat().st_mtime_ns
    (tmp_path / "scores" / "scores-00001.parquet").unlink()
    (tmp_path / "scores" / ".scores-00001.parquet.part").write_bytes(b"half")
    here.clear()
    result = score(cfg)
    assert here == ["shard-00001.parquet"]
    assert kept.stat().st_mtime_ns == before
    assert (result.extra["rows"], result.extra["shards_kept"]) == (100, 1)
    here.clear()
    assert score(cfg).extra["shards_kept"] == 2
    assert here == []
    cfg.force = True
    assert score(cfg).extra["shards_kept"] == 0
    assert len(here) == 2


def test_a_folder_of_other_scores_is_refused(planted, tmp_path, here):
    score(config(planted, tmp_path, top_k=5))
    other = config(planted, tmp_path, top_k=6)
    with pytest.raises(ConfigError, match=r"output=.*other settings.*force=true"):
        score(other)
    other.force = True
    assert score(other).extra["rows"] == 20 * 6
    assert json.loads((tmp_path / "scores" / "_scores.json").read_text())["top_k"] == 6


def test_the_default_folder_lies_in_the_run_and_depends_on_the_settings(planted, here):
    outputs = {score(ScoreConfig(run=str(planted[0]), top_k=k)).extra["output"] for k in (1, 2)}
    assert len(outputs) == 2
    assert all(output.startswith(f"{planted[0]}/reports/scores-") for output in outputs)


def test_lists_end_where_the_catalogue_does(planted, tmp_path, here):
    score(config(planted, tmp_path, top_k=1000))
    table = pq.read_table(tmp_path / "scores")
    counts = {user: table["user_id"].to_pylist().count(user) for user in (user_id(0), user_id(9))}
    assert counts == {user_id(0): 60, user_id(9): 51}
    assert item_id(0) in table["item_id"].to_pylist()


def test_plain_vectors_have_no_users_to_score(tmp_path, here):
    vectors_run(tmp_path)
    with pytest.raises(BuildError, match="no users to score"):
        score(ScoreConfig(run=str(tmp_path)))


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 0},
        {"gamma": -1.0},
        {"ranking": "best"},
        {"ranking": "similar"},
        {"batch_users": 0},
    ],
)
def test_settings_out_of_range(settings):
    [key] = settings
    with pytest.raises(ConfigError, match=key):
        ScoreConfig(**settings)


@pytest.mark.ray
def test_on_a_cluster(planted, tmp_path, ray_cluster, monkeypatch):
    monkeypatch.setattr(tasks, "IN_PROCESS_ROWS", 0)
    score(config(planted, tmp_path, top_k=4))
    check_against_search(tmp_path / "scores", planted[1], top_k=4)
    other = config(planted, tmp_path / "other")
    other.ranking = "similar"  # which no configuration takes
    with pytest.raises(Exception, match="similar") as caught:
        score(other)
    assert isinstance(find_cause(caught.value), SearchError)
