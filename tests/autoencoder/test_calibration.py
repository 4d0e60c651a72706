import torch

from raysys.autoencoder.calibration import Link


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
