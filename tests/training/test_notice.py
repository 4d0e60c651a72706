"""A training that is told that a host goes saves at the next step, on all ranks alike."""

import pytest

from raysys.training.loop import train
from raysys.training.optim import OptimConfig
from raysys.training.task import Ranks
from tests.training.test_loop import LineTask

STEPS = 8  # of an epoch


def saved_at(*, told_after, checkpoint_steps):
    """Return the positions (epoch, step) that a training saved, told at so many questions."""
    saved, asked = [], []

    def save(record, state):
        if state is not None:
            saved.append((state["epoch"], state["step"]))

    def warned():
        asked.append(True)
        return len(asked) > told_after

    cfg = OptimConfig(epochs=3, batch_size=4, patience=0, checkpoint_steps=checkpoint_steps)
    train([LineTask], cfg, seed=0, ranks=Ranks(save=save, warned=warned))
    return saved, len(asked)


def test_a_host_that_goes_is_saved_from_at_the_next_step(monkeypatch):
    saved, asked = saved_at(told_after=0, checkpoint_steps=1000)
    assert saved == [(0, 1)]
    assert asked == 1
    monkeypatch.setattr("raysys.training.notice._EVERY_S", 1e-9)  # at every step
    assert saved_at(told_after=0, checkpoint_steps=1000) == ([(0, 1), (1, 3), (2, 5)], 1)


def test_asking_is_no_work_of_every_step():
    saved, asked = saved_at(told_after=1000, checkpoint_steps=1000)
    assert saved == []
    assert 1 <= asked < 3 * STEPS


@pytest.mark.parametrize("told_after", [0, 1000])
def test_where_nothing_is_saved_nobody_is_asked(told_after):
    assert saved_at(told_after=told_after, checkpoint_steps=0) == ([], 0)
