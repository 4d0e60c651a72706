"""Conv4Rec against its dense formula in NumPy, and what must hold for its probabilities."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from raysys.autoencoder.config import LEVEL_WEIGHT, Conv4RecConfig
from raysys.autoencoder.files import Autoencoder
from raysys.autoencoder.level_init import no_start
from raysys.autoencoder.linear_form import retrieval_query, retrieval_vectors
from raysys.autoencoder.model import Conv4Rec
from raysys.autoencoder.ragged_ops import Pairs, factors_left_out, shares_left_out
from raysys.data.batches import ragged
from raysys.data.cells import Cells
from raysys.errors import ConfigError
from raysys.scoring.rankings import Ranking
from raysys.store.builds import Workspace
from tests.support.exact import model_scores
from tests.support.models import EVENTS, N_ITEMS, ONE, REPEATED, SMALL, make, random_cells, stars
from tests.support.planting import plant_autoencoder


def dense_losses(model: Conv4Rec, cells: Cells) -> dict[str, torch.Tensor]:
    """The formulas on one-hot tensors X [B, R, N] in float64, one user and one cell at a time."""
    cfg = model.cfg
    p = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    users, n_levels = cells.n_users, model.levels.n_levels
    x = torch.zeros(users, n_levels, N_ITEMS, dtype=torch.float64)
    x[cells.rows, cells.level.astype(int), cells.item_num.astype(int)] = 1.0
    size = x.sum(dim=(1, 2)).clamp(min=1e-6) ** -cfg.profile_exponent
    items = p["items"]
    if cfg.consume_loss == "cosine":
        items = items / items.norm(dim=1, keepdim=True)
    entries = torch.einsum("brn,r,nh->bnh", x, p["level_scale"], items) * size[:, None, None]
    z_c = entries.sum(dim=1)
    g = items if cfg.consume_loss == "cosine" else p["decoder"]
    y = z_c @ g.T
    if cfg.zero_diagonal:
        y = y - (entries * g).sum(dim=2)
    total = x.sum()
    if cfg.consume_loss == "cosine":
        seen = (x.sum(dim=1) > 0).double()
        rows = torch.nonzero(seen.sum(dim=1))[:, 0]
        cosine = torch.stack([(seen[b] @ y[b]) / seen[b].norm() / _length(y[b]) for b in rows])
        consume = model.typical_size * (1 - cosine).sum() / total
    else:
        log_p = torch.log_softmax(y + p["consume_bias"], dim=1)
        consume = -(x.sum(dim=1) * log_p).sum() / total
    losses = {"consume_loss": consume}
    if n_levels > 1:
        filled = torch.einsum("brn,rc,nch->bnh", x, p["table_in"], p["level_in"])
        filled = filled * size[:, None, None]
        z = (filled.sum(dim=1) + p["level_shift"])[:, None, :]
        z = z - filled if cfg.zero_diagonal else z.expand_as(filled)
        hidden = torch.einsum("bnh,nkh->bnk", z, p["level_out"])
        factors, shares = dense_user(model, x)
        hidden = hidden + factors[:, :, :1] * p["table_user"]
        liking = (factors * model.loadings.double())[:, :, 1:].sum(dim=2, keepdim=True)
        logits = p["level_bias"] + hidden @ p["table_out"] + shares * p["table_levels"]
        logits = logits + 0.7 * liking * p["table_out"][0]
        log_r = torch.log_softmax(logits, dim=2)
        losses["level_loss"] = -(x.transpose(1, 2) * log_r).sum() / total
    losses["loss"] = consume + LEVEL_WEIGHT * losses.get("level_loss", torch.zeros(()))
    losses["loss"].backward()
    losses = {name: value.detach() for name, value in losses.items()}
    losses["gradients"] = {name: value.grad for name, value in p.items()}
    return losses


def dense_user(model: Conv4Rec, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The user's factors [B, N, 1 + F] and log shares [B, N, R], that item left out or not.

    Leaving out is done here by solving again without the item's ratings, but for the variance of
    its loadings, which stays.
    """
    table = model.residual.double().T  # [R, N]
    rated = (torch.isfinite(table) * x).sum(dim=1)  # [B, N]
    residual = (table.nan_to_num(0.0) * x).sum(dim=1)
    loadings, variance = model.loadings.double(), model.loading_variance.double()
    keep = torch.ones(N_ITEMS, N_ITEMS, dtype=torch.float64)
    hist = x.sum(dim=2)[:, None, :]  # [B, 1, R]
    if model.cfg.zero_diagonal:
        keep.fill_diagonal_(0)
        hist = hist - x.transpose(1, 2)
    gram = torch.einsum("bj,ij,jp,jq->bipq", rated, keep, loadings, loadings)
    gram = gram + torch.diag_embed(rated @ variance + model.penalties.double())[:, None]
    right = torch.einsum("bj,ij,jp->bip", residual, keep, loadings)
    factors = torch.linalg.solve(gram, right[..., None])[..., 0]
    overall = model.log_overall.double()
    shares = (hist + 10 * overall.exp()) / (hist.sum(dim=2, keepdim=True) + 10)
    return factors, shares.log() - overall


def _length(values: torch.Tensor) -> torch.Tensor:
    return values.square().sum().clamp_min(1e-12).sqrt()


@pytest.mark.parametrize("consume_loss", ["cosine", "likelihood"])
@pytest.mark.parametrize("zero_diagonal", [True, False])
@pytest.mark.parametrize("case", ["ratings", "repeated ratings", "events", "one level"])
def test_losses_and_gradients_equal_the_dense_formula(consume_loss, zero_diagonal, case):
    levels = {"events": EVENTS, "one level": ONE}.get(case, stars())
    cells = random_cells(3, levels.n_levels)
    if case in ("events", "repeated ratings"):  # several levels per item, and a user without cells
        cells = Cells.from_lists(REPEATED)
    model = make(levels, consume_loss=consume_loss, zero_diagonal=zero_diagonal)
    losses = model(ragged(cells))
    losses["loss"].backward()
    expected = dense_losses(model, cells)
    for name, value in losses.items():
        assert value.item() == pytest.approx(float(expected[name]), abs=1e-5, rel=1e-5)
    for name, parameter in model.named_parameters():
        wanted = expected["gradients"][name]
        wanted = torch.zeros_like(parameter) if wanted is None else wanted.float()
        torch.testing.assert_close(parameter.grad, wanted, atol=2e-5, rtol=1e-4)


def test_probabilities_of_all_cells_sum_to_one():
    model = make().eval()
    with torch.no_grad():
        z = model.encode(ragged(random_cells(1, 5)))
        joint = model.log_p_consume(z)[:, :, None] + model.log_p_levels(z)
    torch.testing.assert_close(joint.exp().sum(dim=(1, 2)), torch.ones(4))


def test_the_joint_probability_is_the_product_of_its_factors_and_items_agree_with_scores():
    model = make().eval()
    with torch.no_grad():
        z = model.encode(ragged(random_cells(1, 5)))
        logits = model.log_p_consume(z)[:, :, None] + model.log_p_levels(z)
        flat = torch.log_softmax(logits.flatten(1), dim=1).view_as(logits)
        torch.testing.assert_close(torch.logsumexp(flat, dim=2), model.log_p_consume(z))
    nums = np.array([7, 0, 3])
    got = model_scores(model, z[2], nums)
    np.testing.assert_allclose(got.level_probs.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(got.expected_rating, got.level_probs @ np.arange(1, 6), rtol=1e-5)
    np.testing.assert_allclose(got.p_like, got.level_probs[:, 3:].sum(axis=1), rtol=1e-5)
    for name in model.available_rankings:
        ranking = Ranking.parse(name, 0.7)
        every = model.scores(z, ranking)[2, nums]
        np.testing.assert_allclose(ranking.exact(got), every, rtol=1e-4, atol=1e-5)


def test_permuting_items_permutes_scores():
    model = make().eval()
    order = torch.randperm(N_ITEMS, generator=torch.Generator().manual_seed(2))  # new -> old
    moved = make()
    state = model.state_dict()
    per_item = {k: v[order] if v.dim() and len(v) == N_ITEMS else v for k, v in state.items()}
    moved.load_state_dict(per_item)
    moved.eval()
    cells = random_cells(5, 5)
    new_num = torch.argsort(order).numpy()
    renamed = dataclasses.replace(cells, item_num=new_num[cells.item_num].astype(np.int32))
    with torch.no_grad():
        z, z_moved = model.encode(ragged(cells)), moved.encode(ragged(renamed))
        torch.testing.assert_close(z, z_moved)
        for ranking in map(Ranking, model.available_rankings):
            got = moved.scores(z_moved, ranking)
            torch.testing.assert_close(got, model.scores(z, ranking)[:, order])


def test_an_empty_profile_gets_the_prior():
    counts = torch.tensor([[1.0] * 5, [9.0] * 5, [4.0] * 5])
    model = Conv4Rec(Conv4RecConfig(**SMALL), n_items=3, levels=stars(), counts=counts).eval()
    with torch.no_grad():
        z = model.encode(ragged(Cells.from_lists([[]])))
        assert model.consume_scores(z)[0].argsort(descending=True).tolist() == [1, 2, 0]
        scores = model_scores(model, z[0], np.arange(3))
    assert np.isfinite(scores.log_p_consume).all()
    np.testing.assert_allclose(scores.expected_rating, 3, atol=0.01)


def test_consume_is_exactly_linear_and_like_is_its_expansion():
    model = make().eval()
    with torch.no_grad():
        z = model.encode(ragged(random_cells(1, 5)))
    vectors, bias = retrieval_vectors(model)
    query, weight = retrieval_query(model, z, Ranking("consume"))
    linear = query @ torch.from_numpy(vectors).T + weight @ torch.from_numpy(bias).T
    torch.testing.assert_close(linear, model.scores(z, Ranking("consume")))
    near = z.clone()
    near[:, model.width :] = model.mean_level_latent + 1e-3 * z[:, model.width :]
    query, weight = retrieval_query(model, near, Ranking("like"))
    linear = query @ torch.from_numpy(vectors).T + weight @ torch.from_numpy(bias).T
    logit = torch.logit(model.scores(near, Ranking("like")).exp())
    torch.testing.assert_close(linear, logit, atol=1e-4, rtol=0)


def test_an_event_log_has_no_expected_rating_and_one_level_has_no_level_block():
    for levels in (EVENTS, ONE):
        model = make(levels).eval()
        with torch.no_grad():
            z = model.encode(ragged(Cells.from_lists([[(0, 0)]])))
        scores = model_scores(model, z[0], np.arange(4))
        assert scores.expected_rating is None
        np.testing.assert_allclose(scores.level_probs.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("levels", [stars(), EVENTS, ONE])
@pytest.mark.parametrize("consume_loss", ["cosine", "likelihood"])
def test_every_parameter_is_in_one_optimiser_group_and_training_lowers_the_loss(
    levels, consume_loss
):
    model = make(levels, consume_loss=consume_loss)
    groups = model.parameter_groups(0.01)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    optimiser = torch.optim.AdamW(groups)
    batch = ragged(random_cells(2, levels.n_levels))
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        losses.append(model(batch)["loss"])
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0]


def test_a_user_who_rates_above_the_items_means_is_expected_to_go_on():
    counts = torch.full((N_ITEMS, 5), 20.0)
    model = Conv4Rec(Conv4RecConfig(**SMALL), n_items=N_ITEMS, levels=stars(), counts=counts)
    with torch.no_grad():
        model.level_in.zero_()
        low, high = model.eval().encode(ragged(Cells.from_lists([[(0, 0)] * 9, [(0, 4)] * 9])))
    other = np.array([5])
    assert model_scores(model, high, other).expected_rating > 3.5
    assert model_scores(model, low, other).expected_rating < 2.5


def test_an_unknown_item_gets_what_the_user_alone_says():
    model = make().eval()
    with torch.no_grad():
        nobody, low, high = model.encode(
            ragged(Cells.from_lists([[], [(0, 0)] * 9, [(0, 4)] * 9]))
        )[:, model.width :]
        model.table_user.copy_(torch.eye(1, model.cfg.level_channels)[0])
        model.table_levels.fill_(0.5)
        logits = model.level_logits(torch.stack([nobody, low, high]), None)
        rating = logits.softmax(dim=1) @ torch.arange(1.0, 6.0)
    torch.testing.assert_close(logits[0].softmax(dim=0), model.log_overall.exp())
    assert rating[1] < rating[0] < rating[2]


def test_old_cells_weigh_less():
    model = make(profile_half_life_days=1.0)
    cells = Cells.from_lists([[(0, 1), (1, 1)]])
    times = np.array([0, 86_400], dtype=np.int64)
    batch = ragged(dataclasses.replace(cells, timestamp=times), reference_time=86_400)
    weight = model.cell_weights(batch)
    np.testing.assert_allclose(weight, np.array([0.5, 1.0]) / np.sqrt(1.5), rtol=1e-6)


def test_the_weighted_losses_of_the_halves_are_the_loss_of_the_whole():
    model = make(zero_diagonal=True)
    cells = random_cells(4, 5, sizes=(6, 2, 1, 7))
    halves = [cells.users(np.array([0, 2])), cells.users(np.array([1, 3]))]
    whole = model(ragged(cells))
    for name, value in whole.items():
        parts = [model(ragged(h))[name] * h.n_cells for h in halves]
        torch.testing.assert_close(sum(parts) / cells.n_cells, value)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    model = make()
    workspace = Workspace(str(tmp_path))
    build = plant_autoencoder(workspace, model)
    loaded = Autoencoder.open(build).model
    assert loaded.levels == model.levels
    maps = Path("/proc/self/maps")
    assert (
        not maps.exists() or str(build.path("model.safetensors")) in maps.read_text()
    )  # not in memory
    assert not loaded.training
    cells = ragged(random_cells(1, 5))
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode(cells), model.eval().encode(cells))
        z = model.encode(cells)
        for ranking in (Ranking("consume"), Ranking("like")):
            torch.testing.assert_close(loaded.scores(z, ranking), model.scores(z, ranking))


def test_dropout_takes_the_same_entries_from_a_latent_and_from_the_items_own_share():
    model = make(zero_diagonal=True, dropout=0.5).train()
    batch = ragged(random_cells(7, 5, sizes=(6, 1, 0, 8)))
    weight, pairs = model.cell_weights(batch), Pairs(batch, N_ITEMS)
    torch.manual_seed(11)
    found = model._cell_level_logits(batch, weight, pairs)
    torch.manual_seed(11)
    table = model.table_in[batch.level] * weight[:, None]
    latent = model.level_latent(batch, table)
    keep = F.dropout(torch.ones_like(latent), 0.5)
    assert 0 < int((keep == 0).sum()) < keep.numel()
    own = (table[:, :, None] * model.level_in[batch.item_num]).sum(dim=1)
    left = (latent[batch.rows] - own) * keep[batch.rows]
    tables = model.user_tables()
    learned = (model.level_out[batch.item_num] * left[:, None, :]).sum(dim=2)
    known = factors_left_out(batch, pairs, tables), shares_left_out(batch, pairs, tables)
    wanted = model._item_logits(learned, *known, batch.item_num)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("key", "value"), [("latent", 0), ("consume_loss", "hinge"), ("dropout", 1.0)]
)
def test_settings_that_cannot_work_are_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=f"autoencoder.{key}={value!r}"):
        Conv4RecConfig(**{key: value})


@pytest.mark.parametrize("levels", [stars(), EVENTS, ONE])
@pytest.mark.parametrize("n_factors", [0, 5, 16])
def test_a_restored_model_has_the_sizes_of_its_state(levels, n_factors):
    """Builds of before the choice have 16 factors, and so many places in `mean_level_latent`."""
    cfg = Conv4RecConfig(**SMALL)
    start = no_start(N_ITEMS, levels, n_factors)
    model = Conv4Rec(cfg, n_items=N_ITEMS, levels=levels, start=start)
    again = Conv4Rec.restored(model.state_dict(), cfg, levels)
    assert again.n_factors == (n_factors if levels.n_levels > 1 else 0)
    batch = ragged(random_cells(0, levels.n_levels))
    torch.testing.assert_close(again.encode(batch), model.encode(batch))
    torch.testing.assert_close(
        again.log_p_levels(again.encode(batch)), model.log_p_levels(model.encode(batch))
    )
