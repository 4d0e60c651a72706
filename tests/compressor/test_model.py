import numpy as np
import pytest
import torch

from raysys.compressor.model import CompresSAE, CompresSAEConfig
from raysys.errors import ConfigError, DataError


@pytest.fixture
def x():
    return torch.randn(64, 16, generator=torch.Generator().manual_seed(1))


def numpy_loss(x, model):
    """The paper's formula, row by row."""
    e, b, d = (
        p.detach().numpy().astype(np.float64) for p in (model.encoder, model.bias, model.dictionary)
    )
    total = 0.0
    for weight, n in ((1.0, model.n_active), (model.wide_weight, 4 * model.n_active)):
        for row in x.numpy().astype(np.float64):
            a = row / np.linalg.norm(row) @ e + b
            code = np.zeros_like(a)
            kept = np.argsort(-np.abs(a))[:n]
            code[kept] = a[kept]
            xhat = code @ d
            cosine = row @ xhat / np.linalg.norm(row) / np.linalg.norm(xhat)
            total += weight * (1 - cosine) / len(x)
    return total


def test_loss_is_the_papers(x):
    model = CompresSAE(16, code_dim=40, n_active=5, wide_weight=0.3)
    assert float(model(x)["loss"].detach()) == pytest.approx(numpy_loss(x, model), abs=1e-5)


def test_codes_keep_signs_and_are_nested(x):
    model = CompresSAE(16, code_dim=40, n_active=5)
    atoms, values = model.encode(x)
    a = model.preactivations(x)
    assert atoms.shape == (64, 5)
    assert (values < 0).any()
    torch.testing.assert_close(values, a.gather(1, atoms))
    torch.testing.assert_close(model.encode(x, 3)[0], atoms[:, :3])


def test_atoms_stay_of_unit_norm_and_training_reduces_the_loss(x):
    model = CompresSAE(16, code_dim=40, n_active=5)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    first = float(model(x)["loss"].detach())
    for _ in range(30):
        optimiser.zero_grad()
        model(x)["loss"].backward()
        model.before_step()
        along = (model.dictionary.grad * model.dictionary.detach()).sum(dim=1)
        assert float(along.abs().max()) < 1e-6
        optimiser.step()
        model.after_step()
        norms = model.dictionary.detach().norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(40))
    assert float(model(x)["loss"].detach()) < 0.7 * first


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_bad_row_is_named(x, value):
    x[3] = value
    with pytest.raises(DataError, match="row 3"):
        CompresSAE(16, code_dim=40, n_active=5)(x)


def test_sizes_follow_the_catalogue():
    assert CompresSAEConfig().sizes(60_000) == (4096, 32)
    assert CompresSAEConfig().sizes(400) == (100, 25)
    assert CompresSAEConfig(n_active=8).sizes(400) == (100, 8)
    with pytest.raises(ConfigError, match="n_active=32"):
        CompresSAEConfig(n_active=32).sizes(400)
    with pytest.raises(ConfigError, match="exceeds code_dim"):
        CompresSAE(16, code_dim=40, n_active=11)


def test_weights_round_trip(x, tmp_path):
    model = CompresSAE(16, code_dim=40, n_active=5)
    model.save(tmp_path / "encoder.safetensors")
    again = CompresSAE.load(tmp_path / "encoder.safetensors", n_active=5)
    torch.testing.assert_close(again(x)["loss"], model(x)["loss"])
