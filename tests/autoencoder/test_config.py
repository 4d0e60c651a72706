"""What each setting of the model changes."""

import dataclasses

import pytest
import torch

from raysys.data.batches import ragged
from tests.support.models import N_ITEMS, SMALL, make, random_cells


def test_sizes_of_the_blocks():
    def shape(name, **settings):
        return tuple(make(**settings).state_dict()[name].shape)

    assert shape("items", latent=7) == (N_ITEMS, 7)
    assert shape("level_in") == (N_ITEMS, SMALL["channels"], SMALL["level_latent"])
    assert shape("level_in", level_latent=4) == (N_ITEMS, SMALL["channels"], 4)
    assert shape("level_in", channels=7) == (N_ITEMS, 7, SMALL["level_latent"])
    assert shape("level_out", level_channels=4) == (N_ITEMS, 4, SMALL["level_latent"])


@torch.no_grad()
def test_the_likelihood_is_that_of_a_sample_where_the_settings_say_so():
    batch = ragged(random_cells(2, 5))

    def losses(**settings):
        model = make(consume_loss="likelihood", **settings)
        return {float(model(batch)["loss"]) for _ in range(3)}

    assert len(losses()) == 1 == len(losses(items_loss="full"))
    assert len(losses(items_loss="sampled")) == 3  # each draws anew
    sampled = make(items_loss="sampled").cfg
    assert sampled.sampled(N_ITEMS)
    assert not dataclasses.replace(sampled, items_loss="full").sampled(10**9)


@torch.no_grad()
def test_more_negatives_come_nearer_to_the_whole():
    batch = ragged(random_cells(2, 5))
    whole = float(make(consume_loss="likelihood")(batch)["loss"])

    def spread(negatives):
        model = make(consume_loss="likelihood", items_loss="sampled", negatives=negatives)
        torch.manual_seed(1)
        return sum(abs(float(model(batch)["loss"]) - whole) for _ in range(20))

    assert spread(400) < spread(8) / 3


def test_decay_acts_on_the_level_blocks_item_vectors():
    model = make(weight_decay=2.0)
    decays = {id(p): g["weight_decay"] for g in model.parameter_groups(0.1) for p in g["params"]}
    assert decays[id(model.level_in)] == decays[id(model.level_out)] == 2.0
    assert decays[id(model.items)] == 0


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_profiles_count_by_a_power_of_their_length(exponent):
    batch = ragged(random_cells(1, 5, sizes=(4, 2)))
    weight = make(profile_exponent=exponent).cell_weights(batch)
    torch.testing.assert_close(weight, torch.tensor([4.0] * 4 + [2.0] * 2) ** -exponent)
