"""The form of time: its numbers by name, and what they do to biases."""

import dataclasses
import json

import numpy as np
import pytest

from raysys.timing.counters import HALF_LIVES_D, Counters
from raysys.timing.files import Timed
from raysys.timing.form import TimeForm

DAY = 86_400


def counters():
    times = np.array([0, 0, 0, 9, 9, 10]) * DAY
    return Counters.of(np.array([0, 0, 0, 1, 1, 2]), times, n_items=4, time=10 * DAY)


def test_choices_hold_all_numbers():
    form = TimeForm.single(3.0, 7.0).towards(1.0, 0.25)
    form = dataclasses.replace(form, lift=0.5, length=0.25, recency=20.0, popularity=-0.1)
    choices = json.loads(json.dumps(form.as_choices(0.2)))
    assert TimeForm.of_choices(choices) == (form, 0.2)
    assert TimeForm.of_choices({}) == (TimeForm(), 1.0)


def test_shares_of_a_list_add_up_to_one():
    form = TimeForm.single(1.0, 7.0).towards(1.0, 0.25).towards(0.0, 0.5)
    assert sum(form.shares) == pytest.approx(1)
    fewer = form.without(7.0)
    assert sum(fewer.shares) == pytest.approx(1)
    assert fewer.shares[HALF_LIVES_D.index(7.0)] == 0


def test_a_short_half_life_puts_what_is_new_first():
    order = [np.argsort(-TimeForm.single(1.0, h).bias(counters())).tolist() for h in (0.0, 0.25)]
    assert order == [[0, 1, 2, 3], [2, 1, 0, 3]]
    assert not TimeForm().bias(counters()).any()
    less = dataclasses.replace(TimeForm.single(1.0, 0.0), popularity=-2.0)
    assert less.bias(counters()).argmax() == 3  # popularity counts against itself
    np.testing.assert_allclose(TimeForm(lift=0.5).item_lift(np.array([0.0, 6])), [10**-0.5, 0.25])


def test_the_prior_moves_with_events():
    timed = Timed.at_first(TimeForm.single(2.0, 0.25), 0.1, counters())
    np.testing.assert_allclose(timed.prior(), 0.1 * timed.form.bias(timed.counters), rtol=1e-6)
    later = timed.added(np.full(9, 3), np.full(9, 11 * DAY))
    assert timed.prior().argmax() == 2
    assert later.prior().argmax() == 3
    assert timed.prior().max() == 0  # later ones are measured from the same share
    wanted = np.log(np.exp(later.counters.log_share(timed.form.shares))) - timed.top
    np.testing.assert_allclose(later.prior(), 0.1 * 2.0 * wanted, rtol=1e-4)
