"""The compact weights give what the model gives, up to the rounding of their rows."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from raysys.autoencoder.compact import weights_of
from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.level_init import level_start
from raysys.autoencoder.linear_form import retrieval_query
from raysys.autoencoder.model import Conv4Rec
from raysys.data.batches import ragged
from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels, default_liked
from raysys.scoring.files import Weights
from raysys.scoring.rankings import Ranking
from raysys.scoring.scorer import Scorer, at_the_end
from tests.support.exact import model_scores, rounded

N_ITEMS, UNTIL = 40, 1_600_000_000
STARS = RatingLevels(
    tuple("12345"), (1.0, 2.0, 3.0, 4.0, 5.0), default_liked((1.0, 2.0, 3.0, 4.0, 5.0))
)
EVENTS = RatingLevels(("buy", "view"), (None, None), (True, False))
ONE = RatingLevels(("consumed",), (None,), (True,))
HALVES = ("rows", "encoder", "level_in", "level_out")


def random_cells(seed, n_levels, n_users=30):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 12, n_users)
    size = int(counts.sum())
    time = np.concatenate(
        [np.sort(rng.integers(UNTIL - 10**7, UNTIL + 10**4, n) // 50 * 50) for n in counts]
    )
    return Cells(
        user_num=np.arange(n_users, dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        item_num=rng.integers(0, N_ITEMS, size).astype(np.int32),
        level=rng.integers(0, n_levels, size).astype(np.uint8),
        timestamp=time.astype(np.int64),
        window=np.zeros(size, dtype=np.uint8),
    )


def made(levels, *, solved=False, **settings):
    """Return a model with random weights and factors, its link fitted by chance."""
    rng = np.random.default_rng(5)
    rows, items = rng.integers(0, 50, 900), rng.integers(0, N_ITEMS, 900)
    level = rng.integers(0, levels.n_levels, 900)
    start = level_start(rows, items, level, n_items=N_ITEMS, levels=levels)
    cfg = Conv4RecConfig(latent=16, level_latent=8, **settings)
    model = Conv4Rec(cfg, n_items=N_ITEMS, levels=levels, start=start)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
        model.prior = torch.randn(N_ITEMS, generator=draw)
        model.level_offset = 0.1 * torch.randn(levels.n_levels, generator=draw)
        if solved:
            vectors = torch.randn(N_ITEMS, 16, generator=draw)
            model.solve_consume(vectors, 0.01 + torch.rand(2, N_ITEMS, generator=draw))
            lift = torch.rand(N_ITEMS, generator=draw)
            model.follow_time(lift, length=0.3, recency=4.0)
        scores = torch.randn(20, N_ITEMS, generator=draw)
        model.link.fit(scores, torch.arange(20), torch.arange(20))
    return model.frozen()


def scorer_of(model):
    weights = weights_of(model)
    rows = {n: a.astype(np.float16) if n in HALVES else a for n, a in weights.rows.items()}
    return Scorer(Weights(rows, weights.tables, weights.levels))


CASES = {
    "ratings": (STARS, {}),
    "events": (EVENTS, {}),
    "one level": (ONE, {}),
    "likelihood": (STARS, {"consume_loss": "likelihood"}),
    "half-life": (STARS, {"profile_half_life_days": 20.0}),
    "time form": (STARS, {"solved": True}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("timed", [True, False])
def test_latents_and_scores_are_those_of_the_model(case, timed):
    levels, settings = CASES[case]
    model = made(levels, **settings)
    scorer = scorer_of(model)
    model = rounded(model)
    cells, until = random_cells(3, levels.n_levels), UNTIL if timed else None
    batch = ragged(at_the_end(cells, UNTIL), reference_time=UNTIL) if timed else ragged(cells)
    with torch.no_grad():
        wanted = model.encode(batch)
    z = scorer.encode(cells, until)
    np.testing.assert_allclose(z, wanted.numpy(), atol=2e-5, rtol=1e-4)
    nums = np.array([7, 0, 33, 12])
    for user in range(0, cells.n_users, 7):
        exact = model_scores(model, wanted[user], nums)
        all_scores = scorer.link(scorer.all_consume_scores(z[user])).astype(float)
        found = scorer.score(z[user], nums, np.log(np.exp(all_scores).sum()))
        for name, value in dataclasses.asdict(exact).items():
            if value is None:
                assert getattr(found, name) is None
            else:
                np.testing.assert_allclose(getattr(found, name), value, atol=1e-4, rtol=1e-4)
        if levels.n_levels > 1:
            unknown = model.level_logits(model.split(wanted[user : user + 1])[1], None)
            shares = torch.softmax(unknown, dim=1).numpy()
            np.testing.assert_allclose(scorer.level_probs(z[user], None), shares, atol=1e-5)
    users, offsets = np.array([0, 2, 1]), np.array([0, 2, 2, 4])
    pairs = scorer.pair_level_probs(z[users], nums, offsets)
    one_by_one = [scorer.level_probs(z[0], nums[:2]), scorer.level_probs(z[1], nums[2:])]
    np.testing.assert_array_equal(pairs, np.concatenate(one_by_one))
    unknown = [scorer.level_probs(z[user], None) for user in users]
    np.testing.assert_allclose(
        scorer.unknown_level_probs(z[users]), np.concatenate(unknown), rtol=1e-6
    )


@pytest.mark.parametrize("name", ["consume", "like", "discover"])
def test_queries_of_the_index_are_those_of_the_model(name):
    model = made(STARS)
    scorer, z = scorer_of(model), torch.randn(3, 16 + 8 + 1 + model.n_factors + 5)
    query, weights = retrieval_query(model, z, Ranking(name))
    found, found_weights = scorer.query(z.numpy(), Ranking(name))
    np.testing.assert_allclose(found, query.numpy(), rtol=1e-5)
    np.testing.assert_allclose(found_weights, weights.numpy(), rtol=1e-5)


def test_cells_of_one_age_count_as_one_however_old_they_are():
    """Ages are rounded to float32, as in training: seconds years ago are one age."""
    model = made(STARS, solved=True)
    scorer, old = scorer_of(model), UNTIL - 3 * 365 * 86_400
    cells = dataclasses.replace(
        random_cells(0, 5, n_users=1),
        offsets=np.array([0, 5]),
        item_num=np.arange(5, dtype=np.int32),
        level=np.zeros(5, dtype=np.uint8),
        timestamp=np.array([old, old + 1, old + 2, old + 3, UNTIL]),
        window=np.zeros(5, dtype=np.uint8),
    )
    with torch.no_grad():
        wanted = rounded(model).encode(ragged(at_the_end(cells, UNTIL), reference_time=UNTIL))
    np.testing.assert_allclose(scorer.encode(cells, UNTIL), wanted.numpy(), atol=2e-5, rtol=1e-4)


def test_no_users_have_no_latents():
    scorer = scorer_of(made(STARS))
    cells = random_cells(0, 5).users(np.zeros(0, dtype=np.int64))
    assert scorer.encode(cells, UNTIL).shape[0] == 0


def test_a_serving_process_imports_no_torch_and_nothing_that_draws():
    told = (
        "import sys, raysys.search.search, raysys.http.app; "
        "print({'torch', 'jinja2', 'matplotlib'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
