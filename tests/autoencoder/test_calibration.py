import pytest
import torch
from torch.nn import functional as F

from raysys.autoencoder.calibration import _BINS, Link


def test_the_identity_until_fitted():
    scores = torch.randn(3, 4)
    torch.testing.assert_close(Link()(scores), scores)


def test_a_fitted_link_is_likelier_and_keeps_the_order():
    draw = torch.Generator().manual_seed(0)
    scores = torch.rand(40, 50, generator=draw) ** 4 * 0.01  # proportional to P
    item = torch.multinomial(scores, 30, replacement=True, generator=draw)
    row = torch.arange(40).repeat_interleave(30)
    link = Link()
    nll = link.fit(scores, row, item.flatten())
    truth = -(scores / scores.sum(dim=1, keepdim=True)).log().gather(1, item).mean()
    assert nll < truth + 0.1
    assert (link(scores.flatten().sort().values).diff() >= 0).all()
    assert link.slope() > 0


@pytest.mark.parametrize("seed", range(24))
def test_no_scores_make_its_parameters_run_away(seed):
    draw = torch.Generator().manual_seed(seed)
    n_items, n_users = (5, 60, 108, 700)[seed % 4], (2, 20, 100)[seed % 3]
    scores = torch.randn(n_users, n_items, generator=draw) * 10.0 ** (seed % 5 - 2)
    if seed % 2:
        scores = -scores.abs() * torch.rand(n_users, n_items, generator=draw) ** 8  # a list's tail
    row = torch.randint(n_users, (1 + seed,), generator=draw)
    end = (scores.argmax(dim=1), scores.argmin(dim=1))[seed // 2 % 2]  # all first, or all last
    link = Link()
    assert -1e-2 < link.fit(scores, row, end[row]) < 1e3  # 0 but for float32's rounding
    assert link.parameters_log.abs().max() < 15
    assert link(scores).isfinite().all()


def by_gradient_steps(scores, row, item):
    """Minimise -log P by 150 steps of Adam through all users and items; return its value."""
    t = (scores - scores.mean()) / scores.std()
    logs = Link().parameters_log.clone().requires_grad_()
    optimiser = torch.optim.Adam([logs], lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        slope, power, sharpness, floor = logs.exp()
        curve = slope * t + power * (F.softplus(sharpness * t) + floor).log()
        loss = (curve.logsumexp(dim=1)[row] - curve[row, item]).mean()
        loss.backward()
        optimiser.step()
    return float(loss.detach())


@pytest.mark.parametrize("n_items", [3 * _BINS, 3 * _BINS + 1, 4000])
@pytest.mark.parametrize("kind", ["proportional", "soft", "sparse"])
def test_the_fit_is_as_likely_as_by_gradient_steps_through_all_scores(kind, n_items):
    draw = torch.Generator().manual_seed(1)
    normal = torch.randn(30, n_items, generator=draw)
    if kind == "proportional":
        scores = share = torch.rand(30, n_items, generator=draw) ** 4 * 0.01
    elif kind == "soft":
        scores, share = normal, (2 * normal).exp()
    else:
        scores = normal.exp().square() * (torch.rand(30, n_items, generator=draw) < 0.05)
        share = scores + 1e-3
    item = torch.multinomial(share, 25, replacement=True, generator=draw).flatten()
    row = torch.arange(30).repeat_interleave(25)
    link = Link()
    value = link.fit(scores, row, item)
    exact = -torch.log_softmax(link(scores), dim=1)[row, item].mean()
    assert value == pytest.approx(float(exact), abs=1e-3)
    assert float(exact) < by_gradient_steps(scores, row, item) + 1e-3
    points = scores[row, item].clone().requires_grad_()
    link(points).sum().backward()
    assert link.slope() == pytest.approx(float(points.grad.mean()), rel=1e-4)
