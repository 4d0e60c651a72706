"""What each setting of the optimiser changes."""

import torch
from torch import nn

from raysys.training.optim import OptimConfig, adamw


def test_steps_follow_the_learning_rate_and_weights_decay():
    def moved(**settings):
        module = nn.Linear(1, 1, bias=False)
        nn.init.constant_(module.weight, 2.0)
        optimiser = adamw(module, OptimConfig(**settings))
        module(torch.ones(1)).sum().backward()
        optimiser.step()
        return module.weight.item()

    assert abs(moved(lr=0.5) - 1.5) < 1e-6  # Adam's first step is as long as the rate
    assert abs(moved(lr=0.5, weight_decay=0.2) - (2 * (1 - 0.5 * 0.2) - 0.5)) < 1e-6


def test_a_batch_is_at_most_an_eighth_of_the_data():
    assert OptimConfig(batch_size=50).batch_rows(10_000) == 50
    assert OptimConfig(batch_size=50).batch_rows(80) == 10
    assert OptimConfig().batch_rows(10_000) == 256
