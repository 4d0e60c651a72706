"""What the training loop measures on validation is what `evaluate period=val` reports."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.task import AutoencoderTask
from raysys.autoencoder.validation import best_items, check_metric, direction
from raysys.bench.contenders import ranker, site_profiles
from raysys.data.schema import period_windows
from raysys.errors import ConfigError
from raysys.evaluation.bootstrap import user_keys
from raysys.evaluation.evaluator import Evaluator
from raysys.evaluation.metric_table import MetricLayout
from raysys.evaluation.protocols import cutoff_task
from raysys.evaluation.user_sums import UserSums, rank_task
from raysys.simulate.site import Site, SiteSpec
from raysys.simulate.world import WorldSpec
from raysys.training.loop import train
from raysys.training.optim import OptimConfig
from raysys.training.task import Ranks


@pytest.mark.parametrize("loss", ["cosine", "likelihood"])
@pytest.mark.parametrize("select", ["recall@20", "ndcg@100", "recall@20^0.3"])
def test_what_the_loop_selects_by_is_the_evaluators(tmp_path, loss, select):
    world = WorldSpec(n_users=200, n_items=120, n_interactions=3000, seed=6)
    log = Site(SiteSpec(world)).log()
    cfg = Conv4RecConfig(latent=8, consume_loss=loss)
    profiles = site_profiles(log, tmp_path)
    fixed = {"cells": profiles.cells(), "period": "val", "seed": 0}
    task = AutoencoderTask(profiles, cfg, **fixed, validated=True, select=select)
    optim = OptimConfig(lr=0.02, epochs=3)
    state = train([lambda: task], optim, seed=0, ranks=Ranks())
    windows, n_items = period_windows("temporal", "val"), log.catalogue["val"]
    counts = np.bincount(log.cells.in_windows(windows.fitted).item_num, minlength=n_items)
    evaluator = Evaluator(MetricLayout(), item_counts=counts[:n_items], replicates=0)
    users = UserSums.empty(user_keys(range(200)), first_user=0, layout=evaluator.layout)
    wanted = cutoff_task(log.cells, windows, n_items=n_items)
    rank_task(evaluator, wanted, ranker(task.module), users=users, block=64)
    assert evaluator.count("rows") > 50
    found = evaluator.result()
    for name in {select, "recall@20", "ndcg@100", "recall@20^0.3"}:
        assert state["metrics"][name] == pytest.approx(found[name]["mean"], abs=1e-6)
    assert {record["epoch"] for record in state["history"] if select in record} == {1, 2, 3}


@pytest.mark.parametrize("name", ["recall@10", "recall@20^2", "nll", "ndcg"])
def test_metrics_that_cannot_select_are_refused(name):
    with pytest.raises(ConfigError, match="select"):
        check_metric("select", name)


def test_every_objective_says_which_way_is_better():
    assert [direction(name) for name in ("recall@20", "ndcg@100", "recall@20^0.3")] == ["max"] * 3
    assert direction("nll") == "min"


@pytest.mark.parametrize("top_k", [1, 7, 40])
def test_the_best_items_are_those_of_topk(top_k):
    scores = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    scores[:, 3:7] = -torch.inf  # of a history
    best = best_items(scores, top_k)
    assert torch.equal(scores.gather(1, best), scores.topk(top_k, dim=1).values)
    assert all(len(set(row)) == top_k for row in best.tolist())
