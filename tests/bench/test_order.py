"""The order suite on a planted log where the next item follows from the last one alone."""

from __future__ import annotations

import numpy as np
import pytest

from raysys.bench import order
from raysys.bench.order import OrderBenchConfig
from raysys.config import load
from raysys.data.cells import Cells
from raysys.errors import ConfigError
from raysys.store.builds import Workspace
from tests.support.models import ONE
from tests.support.planting import plant_profiles

N_USERS, N_ITEMS = 240, 40
CUTS = {"val": 10, "test": 11}


@pytest.fixture
def runs(tmp_path):
    """Everyone walks over a ring of items from a random start; a step a second."""
    rng = np.random.default_rng(0)
    start, steps = rng.integers(0, N_ITEMS, N_USERS), np.arange(12)
    item = (start[:, None] + steps) % N_ITEMS
    time = np.tile(steps, (N_USERS, 1))
    cells = Cells(
        user_num=np.arange(N_USERS, dtype=np.int32),
        offsets=np.arange(0, N_USERS * 12 + 1, 12),
        item_num=item.ravel().astype(np.int32),
        level=np.zeros(item.size, dtype=np.uint8),
        timestamp=time.ravel().astype(np.int64),
        window=np.searchsorted([*CUTS.values()], time.ravel(), side="right").astype(np.uint8),
    )
    items = {
        "item_id": [f"i{n}" for n in range(N_ITEMS)],
        "first_seen": [0] * N_ITEMS,
        "n_fit": np.bincount(item[:, :10].ravel(), minlength=N_ITEMS),
    }
    plant_profiles(
        Workspace(str(tmp_path / "ring")),
        cells,
        ONE,
        items,
        split="temporal",
        cutoffs=CUTS,
        has_time=True,
    )
    return str(tmp_path)


def test_only_what_sees_the_order_finds_the_next_item(runs):
    words = [f"run={runs}", "data=[ring]", "epochs=25", "replicates=20"]
    found = order.rows(load(OrderBenchConfig, words))
    figures = {row["method"]: row for row in found}
    assert set(figures) == {*order.fit_baselines.RANKERS, *order.NETWORKS}  # no model was trained
    top = {name: row["ndcg@100"] for name, row in figures.items()}
    assert top["sasrec"] > 0.9
    assert top["sasrec"] > top["sasrec-shuffled"] + 0.1
    assert top["sasrec"] > top["popularity"] + 0.3
    assert top["recvae"] > top["popularity"] + 0.1  # neighbours on the ring go together
    row = figures["sasrec"]
    assert row["ndcg@100_low"] <= row["ndcg@100"] <= row["ndcg@100_high"]
    [short] = order.rows(
        load(OrderBenchConfig, [*words, "methods=[sasrec]", "minutes=0.000001", "epochs=9"])
    )
    assert short["setting"].endswith("epochs=1")


@pytest.mark.parametrize("words", [["methods=[x]"], ["epochs=0"], ["minutes=0"]])
def test_settings_out_of_range_are_refused(words):
    with pytest.raises(ConfigError, match=words[0].partition("=")[0]):
        load(OrderBenchConfig, words)
