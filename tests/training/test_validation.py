"""What the training loop measures on validation is what `evaluate period=val` reports."""

from __future__ import annotations

import numpy as np
import pytest

from raysys.bench.contenders import _profiles, _ranker
from raysys.data.schema import period_windows
from raysys.data.simulate import WorldSpec
from raysys.data.site import Site, SiteSpec
from raysys.evaluation.blocks import UserSums, rank_task
from raysys.evaluation.bootstrap import user_keys
from raysys.evaluation.layout import Layout
from raysys.evaluation.protocols import cutoff_task
from raysys.evaluation.temporal import Evaluator
from raysys.models.conv4rec import Conv4RecConfig
from raysys.training.autoencoder import AutoencoderTask
from raysys.training.loop import Ranks, train
from raysys.training.optim import OptimConfig


@pytest.mark.parametrize("loss", ["cosine", "likelihood"])
def test_the_loops_recall_is_the_evaluators(tmp_path, loss):
    world = WorldSpec(n_users=200, n_items=100, n_interactions=3000, seed=6)
    log = Site(SiteSpec(world)).log()
    cfg = Conv4RecConfig(latent=8, consume_loss=loss)
    task = AutoencoderTask(_profiles(log, tmp_path), cfg, period="val", seed=0, validated=True)
    optim = OptimConfig(lr=0.02, epochs=3)
    state = train([lambda: task], optim, seed=0, ranks=Ranks())
    windows, n_items = period_windows("temporal", "val"), log.catalogue["val"]
    evaluator = Evaluator(Layout(), item_counts=np.ones(n_items, dtype=int), replicates=0)
    users = UserSums.empty(user_keys(range(200)), first_user=0, layout=evaluator.layout)
    wanted = cutoff_task(log.cells, windows, n_items=n_items)
    rank_task(evaluator, wanted, _ranker(task.module), users=users, block=64)
    assert evaluator.count("rows") > 50
    found = evaluator.result()["recall@20"]["mean"]
    assert state["metrics"]["recall@20"] == pytest.approx(found, abs=1e-6)
