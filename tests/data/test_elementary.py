import numpy as np
import pytest

from raysys.data.compiled import compiled
from raysys.data.elementary import exp_of, log1p_of, log_of


@compiled
def every_exp(x, out):
    for place in range(x.shape[0]):
        out[place] = exp_of(x[place])


@compiled
def every_log(x, out):
    for place in range(x.shape[0]):
        out[place] = log_of(x[place])


@compiled
def every_log1p(x, out):
    for place in range(x.shape[0]):
        out[place] = log1p_of(x[place])


RNG = np.random.default_rng(0)
SOME = -RNG.exponential(10, 100_000)


@pytest.mark.parametrize(
    ("loop", "true", "x"),
    [
        (every_exp, np.exp, np.append(SOME.clip(-87), [0, -87, -1e-7])),
        (every_log, np.log, np.exp(RNG.normal(size=100_000) * 20).clip(1e-37, 1e37)),
        (every_log, np.log, np.append(RNG.uniform(0.5, 2, 100_000), [1, 0.5, 2, np.sqrt(2)])),
        (every_log1p, np.log1p, np.append(np.exp(SOME), [1, 0, 1e-30])),
    ],
)
def test_they_are_what_double_precision_says_to_three_units_in_the_last_place(loop, true, x):
    x = x.astype(np.float32)
    found = np.empty_like(x)
    loop(x, found)
    wanted = true(x.astype(np.float64))
    units = np.abs(found - wanted) / np.spacing(np.abs(wanted).astype(np.float32))
    assert units.max() < 3


def test_exp_of_very_little_is_nearly_nothing():
    found = np.empty(3, np.float32)
    every_exp(np.array([-90, -1e30, -np.inf], np.float32), found)
    assert (found < 1e-37).all()
    assert (found >= 0).all()
