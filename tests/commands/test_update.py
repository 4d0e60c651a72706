"""Changes between builds, from the command's settings to what a search returns."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.commands.index import IndexConfig, index
from raysys.commands.query import QueryConfig, query
from raysys.commands.train import TrainConfig, train
from raysys.commands.update import UpdateConfig, update
from raysys.errors import ConfigError, DataError, SearchError, UnknownItemError
from raysys.scoring.rankings import RANKINGS, Needs
from raysys.search.changes import Changes
from raysys.search.query import ProfileEntry, RecommendQuery
from raysys.search.search import Search
from raysys.store.builds import Workspace
from raysys.timing.counters import Counters
from raysys.timing.files import Timed
from raysys.timing.form import TimeForm
from tests.support.planting import plant_profiles
from tests.support.runs import (
    STARS,
    item_id,
    items_of,
    model_run,
    random_cells,
    user_id,
    vectors_run,
)

DIM = 80  # wide enough for codes: narrow vectors are kept dense


def write_rows(path, ids, vectors, column="vector", **more):
    lists = pa.array(list(np.asarray(vectors, np.float32)))
    pq.write_table(pa.table({"item_id": ids, column: lists, **more}), path)
    return str(path)


def own_vectors(folder, n_items=600):
    """Train a compressor on vectors in groups and index them; returns the vectors."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, DIM))
    vectors = (centres[np.arange(n_items) % 20] + 0.3 * rng.normal(size=(n_items, DIM))).astype(
        "f4"
    )
    ids = [f"i{n}" for n in range(n_items)]
    kinds = ["odd" if n % 2 else "even" for n in range(n_items)]
    source = folder / "v.parquet"
    write_rows(
        source, ids, vectors, "embedding", title=[f"T{n}" for n in range(n_items)], kind=kinds
    )
    run = str(folder / "run")
    train(TrainConfig(run=run, model="compressor", source=str(source)))
    index(IndexConfig(run=run))
    return run, vectors


def found(run, vector, **limits):
    [hits] = Search.open(Workspace(run)).nearest(np.atleast_2d(vector), **limits)
    return [hit.item_id for hit in hits]


def test_own_vectors_change_at_once_and_are_taken_in_by_the_next_index(tmp_path):
    run, vectors = own_vectors(tmp_path)
    assert found(run, vectors[5], top_k=1) == ["i5"]
    before = found(run, vectors[25], top_k=10)
    fresh = write_rows(
        tmp_path / "n.parquet", ["ü", "i7"], [vectors[5], -vectors[7]], kind=["odd"] * 2
    )
    why = query(
        QueryConfig(
            run=run,
            profile=[ProfileEntry(item_id="i25"), ProfileEntry(item_id="i45")],
            explain="i65",
        )
    )
    assert "in the profile" in why.splitlines()[0]
    assert "T25" in why or "T45" in why
    assert "score 0." in why.splitlines()[-1]
    result = update(UpdateConfig(run=run, upsert=fresh, delete=["i5", "i6"]))
    assert result.extra == {"n_upserted": 2, "n_deleted": 2}
    again = update(UpdateConfig(run=run, delete=["i8"]))
    assert again.extra == {"n_upserted": 2, "n_deleted": 3}

    def check():
        assert found(run, vectors[5], top_k=1) == ["ü"]
        assert found(run, -vectors[7], top_k=1) == ["i7"]
        assert found(run, vectors[5], top_k=2, allow={"kind": "odd"})[0] == "ü"
        everything = found(run, vectors[5], top_k=999)
        assert sorted(everything) == sorted(
            {f"i{n}" for n in range(600)} - {"i5", "i6", "i8"} | {"ü"}
        )
        search = Search.open(Workspace(run))
        with pytest.raises(UnknownItemError, match="'i6'"):
            search.similar("i6")
        assert search.similar("ü", top_k=3)[0].item_id != "ü"
        profile = [ProfileEntry(item_id="ü"), ProfileEntry(item_id="i25")]
        assert len(search.recommend(RecommendQuery(profile=profile, k=7)).items) == 7

    check()
    workspace = Workspace(run)
    old = workspace.current("codes").build_id
    index(IndexConfig(run=run))
    assert workspace.current("codes").build_id != old
    search = Search.open(workspace)
    assert "changes" not in search.build_ids
    assert search.n_items == 598
    check()
    assert len(set(found(run, vectors[25], top_k=10)) & set(before)) >= 8
    same = index(IndexConfig(run=run)).build_ids
    assert same == {"index": search.build_id}


def test_deletions_of_a_trained_model_hold_and_new_vectors_are_ranked(tmp_path):
    workspace, _ = model_run(tmp_path)
    run = str(tmp_path)
    vectors = np.load(workspace.current("embeddings").path("vectors.npy"))
    plain = Search.open(workspace).recommend(RecommendQuery(user_id=user_id(4), k=60))
    best = plain.items[0]
    num = int(Search.open(workspace).items.num(best.item_id))
    fresh = write_rows(tmp_path / "n.parquet", ["new"], [vectors[num]], title=["New"])
    update(UpdateConfig(run=run, upsert=fresh, delete=[best.item_id]))
    search = Search.open(workspace)
    for ranking in search.rankings:
        query = RecommendQuery(user_id=user_id(4), k=99, ranking=ranking, levels=True)
        hits = search.recommend(query).items
        ids = [hit.item_id for hit in hits]
        assert best.item_id not in ids
        assert ("new" in ids) == (RANKINGS[ranking].needs is not Needs.RATED)
        assert all((hit.levels is None) == (hit.item_id == "new") for hit in hits)
        known = [hit for hit in hits if hit.item_id != "new"]
        assert all(sum(hit.levels.values()) == pytest.approx(1) for hit in known)
    consume = search.recommend(RecommendQuery(user_id=user_id(4), k=99)).items
    new = next(hit for hit in consume if hit.item_id == "new")
    bias = np.load(workspace.current("embeddings").path("bias.npy"))[num, 0]
    assert new.score == pytest.approx(best.score - bias, abs=1e-5)
    assert new.expected_rating is None
    assert search.n_items == len(search.items) - 1
    posted = [ProfileEntry(item_id=name) for name in ("new", "nope", item_id(9))]
    answer = search.recommend(RecommendQuery(profile=posted, k=99))
    assert answer.unknown_items == ["nope"]
    assert not {"new", item_id(9)} & {hit.item_id for hit in answer.items}
    replaced = write_rows(tmp_path / "r.parquet", [item_id(9)], [vectors[9]], title=["Nine"])
    update(UpdateConfig(run=run, upsert=replaced))
    search = Search.open(workspace)
    seen = RecommendQuery(profile=[ProfileEntry(item_id=item_id(9), rating=5)], k=99)
    assert item_id(9) not in [hit.item_id for hit in search.recommend(seen).items]
    loose = RecommendQuery(profile=seen.profile, k=99, exclude_seen=False)
    titles = {hit.item_id: hit.title for hit in search.recommend(loose).items}
    assert titles[item_id(9)] == "Nine"


def test_content_becomes_vectors_where_the_catalogue_has_content(tmp_path):
    workspace, _ = model_run(tmp_path, n_items=120)
    embeddings = workspace.current("embeddings")
    upsert = write_rows(tmp_path / "n.parquet", ["new"], np.ones((1, 6)), "embedding")
    with pytest.raises(DataError, match="catalogue has none"):
        update(UpdateConfig(run=str(tmp_path), upsert=upsert))
    vectors = np.load(embeddings.path("vectors.npy"))
    mix = np.random.default_rng(0).normal(size=(vectors.shape[1], 6))
    items = pq.read_table(embeddings.path("items.parquet"))
    path = tmp_path / "embeddings" / embeddings.build_id / "items.parquet"
    pq.write_table(items.append_column("embedding", pa.array(list(vectors @ mix))), path)
    manifest = path.with_name("manifest.json")
    size = str(embeddings.manifest.files["items.parquet"]["bytes"])
    manifest.write_text(
        manifest.read_text().replace(f'"bytes": {size}', f'"bytes": {path.stat().st_size}')
    )
    result = update(UpdateConfig(run=str(tmp_path), upsert=upsert))
    assert result.extra["cold_held_out"] == 12
    assert 0 <= result.extra["cold_recall@10"] <= 1


@pytest.mark.parametrize(
    ("column", "vectors", "ids", "message"),
    [
        ("vector", np.ones((1, 3)), ["n"], "vectors of 3 numbers, the index 8"),
        ("vector", np.full((1, 8), np.nan), ["n"], "row 0 holds a value that is not finite"),
        ("vector", np.zeros((1, 8)), ["n"], "vector of item 'n' is zero"),
        ("vector", np.ones((2, 8)), ["n", "n"], "item_id twice"),
        ("vec", np.ones((1, 8)), ["n"], "needs item_id and vector or embedding"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, column, vectors, ids, message):
    vectors_run(tmp_path)
    path = write_rows(tmp_path / "n.parquet", ids, vectors, column)
    with pytest.raises(DataError, match=message):
        update(UpdateConfig(run=str(tmp_path), upsert=path))
    assert not Workspace(str(tmp_path)).has("changes")


def test_nothing_to_do_and_unknown_items(tmp_path):
    vectors_run(tmp_path)
    with pytest.raises(ConfigError, match="needs upsert=FILE"):
        update(UpdateConfig(run=str(tmp_path)))
    with pytest.raises(UnknownItemError, match="'nope'"):
        update(UpdateConfig(run=str(tmp_path), delete=["nope"]))
    with pytest.raises(DataError, match=r"none\.parquet' does not exist"):
        update(UpdateConfig(run=str(tmp_path), upsert=str(tmp_path / "none.parquet")))


def test_updates_at_once_lose_nothing(tmp_path):
    ws, _ = vectors_run(tmp_path)
    deletes = [[item_id(n)] for n in (3, 5, 8, 13)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda ids: update(UpdateConfig(run=ws.run, delete=ids)), deletes))
    changes = Changes.open(ws.current("changes"))
    assert set(changes.deleted) == {item_id(n) for n in (3, 5, 8, 13)}


def test_upserts_of_other_types_join_the_catalogue(tmp_path):
    """The catalogue has text, nested lists and objects; upserts bring numbers, text and lists."""
    workspace, vectors = vectors_run(tmp_path)
    run = workspace.run
    first = write_rows(
        tmp_path / "a.parquet",
        pa.array([901.0, 902.0]),
        -vectors[:2],
        title=[1984, 7],
        zip=[7, 8],
        categories=["Books|odd1", None],
        released=pa.array([0, 1], pa.date32()),
        info=["plain", None],
        size=[1, 2],
    )
    second = write_rows(
        tmp_path / "b.parquet",
        pa.array(["903.00"]).cast(pa.decimal128(9, 2)),
        -vectors[2:3],
        title=[["A", "B"]],
        zip=[["0007", "x"]],
        size=["big"],
    )
    update(UpdateConfig(run=run, upsert=first))
    update(UpdateConfig(run=run, upsert=second))
    for allow, ids in (
        ({"zip": 7}, {item_id(7), "901", "903"}),
        ({"zip": "0007"}, {item_id(7), "903"}),
        ({"zip": "x"}, {"903"}),
        ({"size": "2"}, {"902"}),
        ({"size": "big"}, {"903"}),
        ({"released": {"max": "1970-01-31"}, "size": {"max": 9}}, {"901", "902"}),
        ({"title": "A, B"}, {"903"}),
        ({"title": "1984"}, {"901"}),
    ):
        assert set(found(run, vectors[0], top_k=63, allow=allow)) == ids
    odd = set(found(run, vectors[0], top_k=63, allow={"categories": "odd1"}))
    assert odd == {item_id(num) for num in range(1, 60, 2)} | {"901"}
    assert found(run, -vectors[2], top_k=1) == ["903"]
    assert "A, B" in query(QueryConfig(run=run, vector=(-vectors[2]).tolist(), top_k=1))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (pa.array(["a", None]), "row 1: missing item_id"),
        (pa.array([1.0, 0.5]), "row 1: item id is not a whole number"),
        (pa.array([["a"], ["b"]]), "item ids of type list<"),
    ],
)
def test_upserts_without_usable_ids_are_refused(tmp_path, ids, message):
    workspace, vectors = vectors_run(tmp_path)
    path = write_rows(tmp_path / "n.parquet", ids, vectors[:2])
    with pytest.raises(DataError, match=message):
        update(UpdateConfig(run=workspace.run, upsert=path))
    assert not workspace.has("changes")


def timed_run(path, **settings):
    """A run whose lists follow counters that stand before its users' last cells."""
    cells = random_cells(20, 60, 5)
    form = TimeForm.single(5.0, 1.0)
    early = cells.timestamp < 1080
    counted = {"n_items": 60, "time": 1080}
    counters = Counters.of(cells.item_num[early], cells.timestamp[early], **counted)
    timed = Timed.at_first(form, 1.0, counters)
    workspace, _ = model_run(path, timed=timed, fitted_until=1080, **settings)
    return workspace, cells, timed


def test_refresh_counts_what_came_since_the_training(tmp_path):
    workspace, cells, timed = timed_run(tmp_path)
    before = Search.open(workspace)
    query = RecommendQuery(profile=[], k=60)
    old = before.recommend(query)
    assert old.counted_until == 1080
    result = update(UpdateConfig(run=str(tmp_path), refresh=True))
    late = cells.timestamp >= 1080
    assert result.extra["n_counted"] == late.sum()
    search = Search.open(workspace)
    new = search.recommend(query)
    assert new.counted_until == cells.timestamp.max() + 1 == result.extra["counted_until"]
    wanted = timed.added(cells.item_num[late], cells.timestamp[late]).prior()
    scores = {hit.item_id: hit.score for hit in new.items}
    assert [scores[item_id(n)] for n in range(60)] == pytest.approx(wanted, abs=1e-5)
    assert [hit.item_id for hit in new.items] != [hit.item_id for hit in old.items]
    index = search.engine.codes.bias[:, 0]
    assert index == pytest.approx(wanted[search.engine.codes.layout.items])
    twice = update(UpdateConfig(run=str(tmp_path), refresh=True))
    assert twice == result  # nothing came in between: the same build
    again = update(UpdateConfig(run=str(tmp_path), refresh=True, delete=[new.items[0].item_id]))
    assert again.extra["n_counted"] == late.sum()  # all since the training, and none twice
    after = Search.open(workspace).recommend(query)
    assert [hit.item_id for hit in after.items] == [hit.item_id for hit in new.items][1:]
    assert after.counted_until == new.counted_until


def test_a_refresh_counts_late_cells_and_leaves_out_those_ahead_of_the_clock(tmp_path, caplog):
    workspace, cells, timed = timed_run(tmp_path)
    update(UpdateConfig(run=str(tmp_path), refresh=True))
    until = Search.open(workspace).engine.counted_until
    moved = cells.timestamp.copy()
    moved[np.flatnonzero(moved > 1080)[:2]] = 1081, 4_000_000_000
    cells = dataclasses.replace(cells, timestamp=moved)
    ids = [user_id(num) for num in range(cells.n_users)]
    later = {"config": {"appended": True}}
    plant_profiles(workspace, cells, STARS, items_of(60), user_ids=ids, settings=later)
    update(UpdateConfig(run=str(tmp_path), refresh=True))
    assert "1 cells lie more than a day ahead" in caplog.text
    search = Search.open(workspace)
    assert search.engine.counted_until == until
    known = moved < 4_000_000_000
    wanted = Counters.of(cells.item_num[known], moved[known], n_items=60, time=until)
    assert search.engine.scorer.prior == pytest.approx(
        timed.with_counters(wanted).prior(), abs=1e-5
    )


def test_an_event_ahead_of_the_clock_is_not_observed(tmp_path):
    workspace, _, _ = timed_run(tmp_path)
    search = Search.open(workspace)
    with pytest.raises(SearchError, match="more than a day ahead"):
        search.observe([item_id(1)], [int(time.time() * 1000)])
    assert search.engine.counted_until == 1080


def test_observed_events_change_the_next_answer(tmp_path):
    workspace, cells, _ = timed_run(tmp_path)
    search = Search.open(workspace)
    query = RecommendQuery(profile=[], k=5)
    rare = search.recommend(RecommendQuery(profile=[], k=60)).items[-1].item_id
    end = int(cells.timestamp.max())
    assert search.observe([rare, "nobody knows it"] * 50, [end] * 100) == 50
    answer = search.recommend(query)
    assert answer.items[0].item_id == rare
    assert answer.counted_until == end + 1
    fresh = Search.open(workspace).recommend(query)
    assert fresh.items[0].item_id != rare  # what was observed is the process's own


def test_a_model_without_counters_is_not_refreshed(tmp_path):
    workspace, _ = model_run(tmp_path)
    with pytest.raises(ConfigError, match="no counters"):
        update(UpdateConfig(run=str(tmp_path), refresh=True))
    with pytest.raises(SearchError, match="no counters"):
        Search.open(workspace).observe([item_id(1)], [1])
    assert Search.open(workspace).recommend(RecommendQuery(profile=[], k=1)).counted_until is None
