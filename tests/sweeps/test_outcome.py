import numpy as np

from raysys.sweeps import outcome
from raysys.sweeps.study import Objective, Trial

QUALITY, SIZE = Objective("quality", "max"), Objective("size", "min")
BOTH = [QUALITY, SIZE]


def trial(number, quality=None, size=None, state="complete"):
    found = {} if quality is None else {"objectives": {"quality": quality, "size": size}}
    return Trial(number, {}, state, found, None)


def test_the_front_is_what_nothing_beats_in_everything():
    rng = np.random.default_rng(1)
    points = rng.integers(0, 20, size=(60, 2)).tolist()
    trials = [trial(number, *point) for number, point in enumerate(points)]
    trials.append(trial(60, state="failed"))
    expected = []
    for number, (quality, size) in enumerate(points):
        better = [
            (q, s) for q, s in points if q >= quality and s <= size and (q, s) != (quality, size)
        ]
        if not better and (quality, size) not in [tuple(points[n]) for n in expected]:
            expected.append(number)
    assert [t.number for t in outcome.front(trials, BOTH)] == expected
    assert len(expected) > 2


def test_the_area_that_is_dominated_is_the_share_of_random_points():
    rng = np.random.default_rng(2)
    trials = [trial(n, *point) for n, point in enumerate(rng.random((12, 2)))]
    trials.insert(5, trial(12, state="pruned"))
    found = outcome.hypervolumes(trials, BOTH, [0.0, 1.0])
    probes = rng.random((200_000, 2))
    for shown in (1, 5, 13):
        below = np.zeros(len(probes), dtype=bool)
        for each in (t for t in trials[:shown] if t.is_measured):
            quality, size = each.measured["objectives"].values()
            below |= (probes[:, 0] <= quality) & (probes[:, 1] >= size)
        assert abs(found[shown - 1] - below.mean()) < 0.005
    assert found[5] == found[4]
    assert found == sorted(found)


def test_finalists_are_the_best_without_the_defaults_those_of_the_front_first():
    trials = [
        trial(0, 9, 9),
        trial(1, 8, 8),
        trial(2, 7, 9),
        trial(3, 1, 1),
        trial(4, state="failed"),
    ]
    assert [t.number for t in outcome.finalists(trials, [QUALITY], 2)] == [1, 2]
    assert [t.number for t in outcome.finalists(trials, BOTH, 3)] == [1, 3, 2]
    assert outcome.finalists(trials[:1], [QUALITY], 3) == []


def test_the_best_of_equals_is_the_earlier_one():
    trials = [trial(2, 5, 1), trial(1, 5, 1), trial(0, 4, 0)]
    assert [t.number for t in outcome.ranked(trials, QUALITY)] == [1, 2, 0]
    assert [t.number for t in outcome.ranked(trials, SIZE)] == [0, 1, 2]
    assert outcome.worst(trials, BOTH) == [4, 1]
    assert outcome.worst([], BOTH) is None
