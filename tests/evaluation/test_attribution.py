"""Which events are credited to which impressions: against a plain double loop."""

import numpy as np
import pyarrow as pa
import pytest

from raysys.errors import DataError
from raysys.evaluation.attribution import Attribution

WINDOW, HORIZON = 50, 80


def impression(name, user, time, items, *, arm="a", weight=0.5, build="b", ranking="consume"):
    return {
        "impression_id": name,
        "arm": arm,
        "user_id": user,
        "timestamp": time,
        "item_ids": items,
        "ranking": ranking,
        "build_id": build,
        "weight": weight,
    }


def event(name, user, item, time):
    return {"event_id": name, "user_id": user, "item_id": item, "timestamp": time}


def event_table(events):
    schema = {name: pa.string() for name in ("event_id", "user_id", "item_id")}
    return pa.Table.from_pylist(events, pa.schema(schema | {"timestamp": pa.int64()}))


def impression_table(impressions):
    names = ("impression_id", "arm", "user_id", "ranking", "build_id")
    schema = {name: pa.string() for name in names} | {"timestamp": pa.int64()}
    schema |= {"item_ids": pa.list_(pa.string()), "weight": pa.float64()}
    return pa.Table.from_pylist(impressions, pa.schema(schema))


def joined(events, impressions, *, parts=1):
    log = Attribution(event_table(events), window_s=WINDOW, horizon_s=HORIZON)
    for part in np.array_split(np.arange(len(impressions)), parts):
        log.add(impression_table([impressions[at] for at in part]))
    return log.users()


def by_hand(events, impressions):
    """{user: (arm, first, impressions, conversions, early)}, users of several arms left out."""
    shown = list({i["impression_id"]: i for i in reversed(impressions)}.values())
    done = list({(e["user_id"], e["event_id"]): e for e in reversed(events)}.values())
    users = {}
    for user in {i["user_id"] for i in shown}:
        own = [i for i in shown if i["user_id"] == user]
        if len({i["arm"] for i in own}) > 1:
            continue
        first, total, early = min(i["timestamp"] for i in own), 0, 0
        for e in (e for e in done if e["user_id"] == user):
            ages = [e["timestamp"] - i["timestamp"] for i in own if e["item_id"] in i["item_ids"]]
            credited = any(0 <= age <= WINDOW for age in ages)
            total += credited
            early += credited and e["timestamp"] <= first + HORIZON
        users[user] = (own[0]["arm"], first, len(own), total, early)
    return users


def planted(seed):
    """A small log with repeated ids, unknown users and items, shuffled."""
    rng = np.random.default_rng(seed)
    impressions = [
        impression(
            f"i{rng.integers(150)}-{user}",
            f"u{user}",
            int(rng.integers(300)),
            [f"x{n}" for n in rng.choice(8, 3, replace=False)],
            arm="ab"[user % 2 if user else int(rng.integers(2))],
        )
        for user in rng.integers(0, 12, 160)
    ]
    known = {i["impression_id"]: i for i in reversed(impressions)}
    impressions = [known[i["impression_id"]] for i in impressions]  # a repeated id is the same row
    events = [
        event(f"e{n}", f"u{rng.integers(14)}", f"x{rng.integers(10)}", int(rng.integers(-20, 400)))
        for n in range(200)
    ]
    return events + events[:40], impressions


@pytest.mark.parametrize("seed", range(6))
def test_the_join_is_the_double_loop(seed):
    events, impressions = planted(seed)
    found = joined(events, impressions, parts=1 + seed)
    expected = by_hand(events, impressions)
    rows = zip(
        found.user_ids.to_pylist(),
        (found.arms[arm] for arm in found.arm),
        *(x.tolist() for x in (found.first, found.impressions, found.conversions, found.early)),
    )
    assert {user: values for user, *values in rows} == {u: [*v] for u, v in expected.items()}
    assert (np.diff(found.first) >= 0).all()
    assert set(found.moved) == {i["user_id"] for i in impressions} - set(expected)
    assert sum(found.conversions) > 10


def test_an_event_is_credited_once_and_to_the_edge_of_the_window():
    shown = [impression(f"i{n}", "u", time, ["x", "y"]) for n, time in enumerate((0, 10, 10))]
    times = {"before": -1, "at": 0, "last": 10 + WINDOW, "late": 11 + WINDOW}
    for name, time in times.items():
        found = joined([event("e", "u", "x", time)], shown)
        assert found.conversions.tolist() == [int(name in ("at", "last"))], name
    assert joined([event("e", "u", "z", 5)], shown).conversions.tolist() == [0]
    assert joined([event("e", "other", "x", 5)], shown).conversions.tolist() == [0]
    assert joined([], shown).impressions.tolist() == [3]


def test_shares_are_those_of_the_moment():
    weights = [(0, "a", 0.9), (1, "b", 0.1), (2, "a", 0.9), (3, "a", 0.5), (4, "b", 0.5)]
    shown = [
        impression(f"i{time}", f"u{time}", time, [], arm=arm, weight=weight)
        for time, arm, weight in weights
    ]
    found = joined([], shown)
    expected = [[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [5 / 6, 1 / 6], [0.5, 0.5]]
    assert found.shares == pytest.approx(np.array(expected))
    assert found.configured == {"a": (0.9, 0.5), "b": (0.1, 0.5)}


def test_arms_come_and_go():
    weights = [("a", 0.5), ("b", 0.5), ("a", 0.4), ("c", 0.2), ("b", 0.4), ("a", 0.5), ("b", 0.5)]
    shown = [
        impression(f"i{time}", f"u{time}", time, [], arm=arm, weight=weight)
        for time, (arm, weight) in enumerate(weights)
    ]
    shares = joined([], shown).shares
    assert (shares[:, 2] > 0).tolist() == [False, False, False, True, True, False, False]
    assert shares.sum(axis=1) == pytest.approx(np.ones(7))
    assert shares[-1] == pytest.approx([0.5, 0.5, 0])


def test_an_arm_names_what_answered_most_first():
    shown = [
        impression("1", "u", 0, [], build="old"),
        impression("2", "u", 1, [], build="new", ranking="like"),
        impression("3", "u", 2, [], build="new", ranking="like"),
        impression("4", "v", 2, [], arm="b", build=None, ranking=None),
    ]
    assert joined([], shown).builds == {
        "a": [("new", "like"), ("old", "consume")],
        "b": [("", "")],
    }


def test_only_users_of_several_arms_leave_nobody():
    shown = [impression(f"i{n}", "u", n, ["x"], arm="ab"[n]) for n in range(2)]
    found = joined([event("e", "u", "x", 1)], shown)
    assert (len(found.arm), found.moved, found.arms) == (0, ["u"], ("a", "b"))


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.5, float("nan")])
def test_a_weight_is_a_share(weight):
    with pytest.raises(DataError, match=f"impression 'i' has weight {weight:g}: expected a share"):
        joined([], [impression("i", "u", 0, [], weight=weight)])


def test_users_may_share_an_event_id():
    shown = [impression(f"i{user}", user, 0, ["x"]) for user in ("u1", "u2")]
    events = [event("1", "u1", "x", 5), event("1", "u2", "x", 5), event("1", "u1", "x", 6)]
    assert joined(events, shown).conversions.tolist() == [1, 1]
