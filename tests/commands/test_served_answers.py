"""Answers of an index that the job built, on a catalogue too large to be summed exactly."""

import numpy as np
import pytest

from raysys.commands.index import IndexConfig, index
from raysys.commands.update import UpdateConfig, update
from raysys.index.files import IndexFacts
from raysys.scoring.normaliser import MAX_EXACT, exact_sums
from raysys.scoring.rankings import Ranking
from raysys.search.query import RecommendQuery
from raysys.search.search import Search
from raysys.timing.counters import Counters
from raysys.timing.files import Timed
from raysys.timing.form import TimeForm
from tests.support.runs import item_id, model_run, random_cells, user_id

N_ITEMS, N_USERS, UNTIL = MAX_EXACT + 500, 60, 2500


@pytest.fixture(scope="module", params=[1, 2], ids=["one shard", "two shards"])
def run(request, tmp_path_factory):
    """A run with counters whose index is of the job, of one shard or two."""
    folder = tmp_path_factory.mktemp("run")
    cells = random_cells(N_USERS, N_ITEMS, 5)
    counted = {"n_items": N_ITEMS, "time": UNTIL}
    early = cells.timestamp < UNTIL
    counters = Counters.of(cells.item_num[early], cells.timestamp[early], **counted)
    timed = Timed.at_first(TimeForm.single(1.0, 1.0), 1.0, counters)
    settings = {"n_items": N_ITEMS, "n_users": N_USERS, "timed": timed, "fitted_until": UNTIL}
    workspace, _ = model_run(folder, **settings)
    kind = {} if request.param == 1 else {"kind": "ivf", "n_shards": 2}
    index(IndexConfig(run=str(folder), **kind))
    return workspace, cells


def errors(search, cells):
    """Return |log P - exact log P| of every user."""
    engine = search.engine
    z = engine.encode(cells)
    wanted = exact_sums(engine.scorer, z[:1], z)[1]
    return np.abs(engine.log_z(z, cells) - wanted)


def test_log_p_is_as_exact_as_the_manifest_says(run):
    workspace, cells = run
    search = Search.open(workspace)
    facts = IndexFacts.of(workspace.current("index"))
    assert facts.n_shards == len(getattr(search.engine.codes, "parts", [0]))
    assert not search.engine.normaliser.exact
    told = facts.normaliser
    assert told["n_users"] == 30  # half of the users with cells, and a newcomer
    found = errors(search, cells)
    assert 0 < np.median(found) < 0.05
    assert told["error_median"] == pytest.approx(np.median(found), abs=0.02)


def test_p_consume_is_one_number_for_every_ranking_filter_and_length(run):
    workspace, _ = run
    search = Search.open(workspace)
    first = search.recommend(RecommendQuery(user_id=user_id(40), k=5))
    wanted = {hit.item_id: hit.p_consume for hit in first.items}
    assert 0 < sum(wanted.values()) < 1
    for ranking in ("consume", "discover", "like"):
        for allow in (None, {"categories": "odd1"}):
            query = RecommendQuery(user_id=user_id(40), k=2000, ranking=ranking, allow=allow)
            for hit in search.recommend(query).items:
                if hit.item_id in wanted:
                    assert hit.p_consume == pytest.approx(wanted[hit.item_id], rel=1e-5)


def test_a_prior_that_moves_and_items_that_come_keep_it_exact(run, tmp_path):
    workspace, cells = run
    search = Search.open(workspace)
    before = search.engine.scorer.prior.copy()
    some = np.random.default_rng(0).integers(0, N_ITEMS, 300)
    count = search.observe([item_id(n) for n in some], [UNTIL + 10] * 300)
    assert count == 300
    assert not np.array_equal(search.engine.scorer.prior, before)
    found = errors(search, cells)
    assert np.median(found) < 0.05
    update(UpdateConfig(run=workspace.run, delete=[item_id(3)]))
    changed = Search.open(workspace)
    assert np.median(errors(changed, cells)) < 0.05
    listed = changed.engine.rank(cells, top_k=20, ranking=Ranking("consume"))
    assert 3 not in listed
