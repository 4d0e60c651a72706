"""The rule of the gate, and what is looked at before it."""

import dataclasses
import re

import numpy as np
import pyarrow as pa
import pytest

from raysys.commands import refresh_gate as gate
from raysys.commands.refresh_gate import Span, decide, guard, guards_of_rows, usual_skill
from raysys.data.profiles import Profiles
from raysys.evaluation.comparison import Difference
from raysys.reports.newest import levels_of, others_of, window_of
from raysys.reports.refreshes import Decision, held, kept, taken_back
from tests.support.models import stars
from tests.support.training import planted_cells, planted_run

UNKNOWN = ("items", "share of unknown items", 0.9, 0.5)


def pair(difference, low, high, *, other=0.4):
    return Difference(other + difference, other, difference, low, high, 0.0, 0.0)


@pytest.mark.parametrize(
    ("pairs", "decision", "said"),
    [
        ({"recall@20": pair(0.01, 0.005, 0.015)}, "published", r"\+0.01"),
        ({"recall@20": pair(-0.01, -0.03, 0.001)}, "published", "not worse beyond noise"),
        ({"recall@20": pair(-0.01, -0.015, -0.005)}, "refused", "worse by 0.01"),
        ({"recall@20": pair(0.01, -0.05, 0.07)}, "waiting", "may be worse by 0.05"),
        ({"recall@20": pair(0, 0, 0), "nll": pair(0.02, 0.01, 0.03)}, "refused", "nll is worse"),
        ({"recall@20": pair(0, 0, 0), "nll": pair(-0.1, -0.2, -0.09)}, "published", "recall"),
        ({}, "waiting", "no metric"),
    ],
)
def test_a_candidate_is_refused_where_it_is_worse_beyond_noise(pairs, decision, said):
    found, reason = decide(pairs, [])
    assert found == decision
    assert re.search(said, reason)
    stopped = decide(pairs, [guard(*UNKNOWN)])
    assert stopped == ("refused", "share of unknown items is 0.9, limit 0.5")
    assert decide(pairs, [guard(*UNKNOWN)], ["levels"]) == stopped
    assert decide(pairs, [guard(*UNKNOWN)], ["items"]) == (found, reason)


def test_new_rows_are_compared_with_those_before(tmp_path):
    workspace = planted_run(tmp_path / "run")
    profiles = Profiles.open(workspace.current("profiles"))
    cells = profiles.cells()
    span = Span(900, 950, 1000)
    fresh, before = cells.timestamp >= 900, (cells.timestamp >= 800) & (cells.timestamp < 900)
    asked = {"n_known": 45, "late": 0.01, "now": 1000.0}
    found = {g["name"]: g for g in guards_of_rows(profiles, span, **asked)}
    shares = [np.bincount(cells.level[mask], minlength=3) / mask.sum() for mask in (fresh, before)]
    shift = np.abs(shares[0] - shares[1]).sum() / 2
    assert found["shift of the levels"]["value"] == pytest.approx(shift, abs=1e-4)
    unknown = (cells.item_num[fresh] >= 45).mean()
    assert found["share of unknown items"]["value"] == pytest.approx(unknown, abs=1e-4)
    assert all(each["passed"] for each in found.values())
    late = guards_of_rows(profiles, span, n_known=0, late=0.9, now=-90_000.0)
    assert [g["key"] for g in late if not g["passed"]] == ["late", "items", "future"]


def sums(n_users):
    return pa.table({"user_key": pa.array(range(n_users), pa.int64())})


def test_without_a_usual_skill_nothing_is_published(monkeypatch):
    """A model that is judged by lists and ratings which nobody knows to be good waits."""
    good = {"ndcg@100": pair(0.1, 0.05, 0.15), "nll": pair(-0.1, -0.15, -0.05)}
    monkeypatch.setattr(gate, "compare_users", lambda *_, **__: (good, None))
    tables = {name: sums(40) for name in (gate.SERVED, gate.CANDIDATE, gate.BLIND)}
    tables |= {gate.USUAL: sums(29), gate.USUAL_BLIND: sums(29)}
    asked = {"metrics": ("ndcg@100",), "seed": 0}
    found = gate.judged(tables, usual={}, **asked)
    assert (found.decision, "29 users" in found.reason) == ("waiting", True)
    assert gate.judged(tables, usual={}, accept=["usual_skill"], **asked).decision == "published"
    assert gate.judged(tables, usual={"ndcg@100": 0.1}, **asked).decision == "published"
    tables |= {gate.USUAL: sums(30), gate.USUAL_BLIND: sums(30)}
    assert gate.judged(tables, usual={}, **asked).decision == "published"


def test_validation_leaves_a_window_that_says_what_is_usual():
    span = Span(1000, 1300, 1700)
    begins = gate.validation_begins(span, first=-9000, length=10, usual=False)
    assert span.start - begins == span.end - span.cut
    assert gate.validation_begins(span, first=-9000, length=10, usual=True) == 1290
    assert gate.validation_begins(span, first=1000, length=900, usual=True) == 1150


def test_a_window_is_cut_anywhere_and_histories_are_those_of_others():
    cells = planted_cells()
    asked = window_of(cells, cut=700, end=800)
    assert (asked.timestamp < 800).all()
    assert np.array_equal(asked.window == 2, asked.timestamp >= 700)
    others = others_of(cells.users(np.array([3, 0])), cells)
    assert others.n_users == 2
    assert np.array_equal(others.item_lists[0], cells.item_lists[4])
    assert np.array_equal(others.item_lists[1], cells.item_lists[1])
    last = cells.users(np.array([cells.n_users - 1]))
    assert np.array_equal(others_of(last, cells).item_num, cells.item_lists[0])


def test_levels_of_another_numbering_are_taken_by_name_or_value():
    own, others = stars(5), stars(5)
    assert levels_of(own, others).tolist() == [0, 1, 2, 3, 4]
    half = dataclasses.replace(others, names=("0.5", *others.names[1:]), values=(0.5, 2, 3, 4, 5))
    assert levels_of(own, half).tolist() == [0, 1, 2, 3, 4]


def decision(number, kind, before, after, **further):
    further = {"logs": ["a log"], **further}
    builds = {"before": {"interactions": before, "index": f"x{before}"}}
    builds["after"] = {"interactions": after, "index": f"x{after}"}
    return Decision(number, "2026-01-01T00:00:00Z", kind, "so", **builds, **further)


def test_a_ledger_says_which_logs_the_run_holds_and_which_builds_stay():
    ledger = [
        decision(1, "published", "a", "b", skill={"nll": 0.1}),
        decision(2, "refused", "b", "c"),
        decision(3, "published", "b", "d", skill={"nll": 0.3}),
    ]
    assert [d.number for d in held(ledger, "d")] == [3, 1]
    assert [d.number for d in held(ledger, "b")] == [1]
    assert held(ledger, "c") == held(ledger, "other") == []
    again = decision(4, "published", "d", "d", logs=[])  # retrained without erased users
    assert [d.number for d in held([*ledger, again], "d")] == [3, 1]
    assert usual_skill(ledger) == {"nll": pytest.approx(0.2)}
    back = decision(4, "rolled back", "d", "b")
    assert usual_skill([*ledger, back]) == {"nll": pytest.approx(0.1)}
    meant = decision(4, "published", "d", "e", skill={"nll": 0.7}, accepted=["skill"])
    assert usual_skill([*ledger, meant]) == {}
    later = decision(5, "published", "e", "f", skill={"nll": 0.6, "ndcg@100": -0.1})
    assert usual_skill([*ledger, meant, later]) == {"nll": 0.6}
    assert kept(ledger, n=1) == {
        (k, f"{p}{b}") for k, p in (("interactions", ""), ("index", "x")) for b in "bd"
    }
    assert taken_back(ledger, "xd") is None
    assert taken_back([*ledger, decision(4, "rolled back", "d", "b")], "xd") == 3
