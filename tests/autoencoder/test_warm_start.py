"""A model that begins at an earlier one."""

import dataclasses

import pytest
import torch

from raysys.autoencoder.warm_start import Beginning, begin_at
from tests.support.models import make, stars


@pytest.mark.parametrize("solved", [False, True])
def test_known_items_begin_where_they_were_and_new_ones_as_without(solved):
    before, fresh, model = make(stars(), seed=1), make(stars(), seed=2), make(stars(), seed=2)
    state = before.state_dict()
    per_item = ("items", "level_in", "level_out", "level_bias")
    n_known = model.n_items - 1
    state |= {name: state[name][:n_known] for name in per_item}
    state["level_offset"] = torch.full_like(state["level_offset"], 0.5)
    taken = begin_at(model, Beginning(state, solved=solved))
    assert ("items" in taken) is not solved
    assert {"level_in", "level_out", "level_bias", "table_out"} <= {*taken}
    for name in ("level_in", "level_out"):
        now = getattr(model, name)
        assert torch.equal(now[:n_known], getattr(before, name)[:n_known]), name
        assert torch.equal(now[n_known:], getattr(fresh, name)[n_known:]), name
    assert torch.allclose(model.level_bias[:n_known], before.level_bias[:n_known] - 0.5)
    wide = make(stars(), seed=1, level_latent=model.cfg.level_latent + 1)
    others = begin_at(model, Beginning(wide.state_dict(), solved=False))
    assert "level_out" not in others
    assert dataclasses.asdict(model.cfg)["level_latent"] + 1 == wide.cfg.level_latent
