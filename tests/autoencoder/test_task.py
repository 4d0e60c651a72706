"""One training step: what may be known before it, and on which device it is made."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from raysys.autoencoder.model import left_out
from raysys.commands.train import TrainConfig
from raysys.commands.train_phases import autoencoder_phases
from raysys.data.batches import Resident, ragged
from raysys.data.cells import Cells
from raysys.timing.form import TimeForm
from raysys.training.loop import train
from raysys.training.optim import OptimConfig
from raysys.training.task import Ranks
from tests.support.models import EVENTS, REPEATED, make, random_cells, stars
from tests.support.training import planted_run


@pytest.mark.parametrize("loss", ["cosine", "likelihood"])
def test_a_share_without_rows_or_cells_makes_a_step_of_zeros(loss):
    model = make(consume_loss=loss)
    for sizes in ((), (0, 0)):
        batch = ragged(random_cells(1, 5, sizes=sizes))
        model(batch)["loss"].backward()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("levels", [stars(), EVENTS])
@pytest.mark.parametrize("loss", ["cosine", "likelihood"])
def test_what_is_known_before_a_step_changes_neither_loss_nor_gradients(levels, loss, repeated):
    model = make(levels, consume_loss=loss, zero_diagonal=True)
    if repeated:
        cells = Cells.from_lists(REPEATED)
    else:
        cells = random_cells(3, levels.n_levels, sizes=(6, 0, 1, 8))
    resident = Resident(cells, torch.device("cpu"))
    rows = np.array([3, 0, 1])
    plain = dataclasses.replace(resident.users(rows), distinct=False)
    resident.left = left_out(model, resident)
    known = resident.users(rows)
    assert known.distinct != repeated
    assert (known.left is None) == (levels is EVENTS)
    grads = []
    for batch in (plain, known):
        model.zero_grad()
        model(batch)["loss"].backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)  # factors are solved in float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("loss", ["cosine", "likelihood"])
def test_a_gpu_gives_the_gradients_of_the_processor(loss, narrow):
    model = make(consume_loss=loss)
    batch = ragged(random_cells(2, 5, sizes=(6, 4, 1, 7)))
    grads = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        model.to(device).zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=narrow and device.type == "cuda"):
            losses = model(batch.to(device))
        losses["loss"].backward()
        grads.append([p.grad.cpu().clone() for p in model.parameters()])
    apart = 2e-2 if narrow else 1e-4
    for one, other in zip(*grads, strict=True):
        assert float((one - other).norm()) <= apart * float(one.norm()) + 1e-6


@pytest.mark.parametrize("loss", ["cosine", "likelihood"])
def test_a_step_in_bfloat16_has_nearly_the_gradients_of_float32(loss):
    model = make(consume_loss=loss)
    batch = ragged(random_cells(2, 5, sizes=(6, 4, 1, 7)))
    grads = []
    for narrow in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            losses = model(batch)
        losses["loss"].backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert F.cosine_similarity(*grads, dim=0) > 0.999


@pytest.mark.parametrize(
    ("days", "warned"),
    [(1.0, "plain form only"), (1e-3, ""), (1e-6, "nobody has validation targets")],
)
def test_a_far_horizon_keeps_the_plain_form(tmp_path, caplog, days, warned):
    workspace = planted_run(tmp_path)
    cfg = TrainConfig(horizon_days=days)
    profiles = workspace.current("profiles").build_id
    phases = autoencoder_phases(
        workspace.run,
        None,
        profiles,
        {"latent": 8, "level_latent": 4},
        seed=0,
        refit="val",
        horizon_days=cfg.horizon_days,
    )
    ended = train(phases, OptimConfig(epochs=1), seed=0, ranks=Ranks())
    assert warned in caplog.text
    assert ("plain form only" in caplog.text) == (days == 1.0)
    form, spread = TimeForm.of_choices(ended["choices"])
    assert (form.lift, form.length, form.recency) == (0, 0, 0)
    assert spread > 0
    assert ended["metrics"]["consume_nll"] > 0
