"""What was decided is carried out whole or not at all, and never over what was done since."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from raysys.commands import refresh_verbs as verbs
from raysys.commands.refresh_models import current
from raysys.commands.refresh_verbs import RefreshesConfig, complete, rollback, status
from raysys.errors import BuildError
from raysys.reports import refreshes
from raysys.reports.refreshes import Decision
from raysys.search.served import Served
from raysys.store.builds import Workspace
from raysys.store.kinds import Facts
from raysys.store.leases import REFRESH, leased

KINDS = ("interactions", "profiles", "changes", "index")


@dataclasses.dataclass(frozen=True)
class Text(Facts):
    text: str


@pytest.fixture
def ws(tmp_path, monkeypatch):
    monkeypatch.setattr(Served, "open", lambda *_, **__: None)
    return Workspace(str(tmp_path / "run"))


def write(ws, text, *, kinds=KINDS):
    """Make builds of a text current; return their ids."""

    def fill(draft):
        draft.path("data").write_text(text)
        return Text(text)

    return {kind: ws.build(kind, config={"text": text}, write=fill).build_id for kind in kinds}


def decide(ws, number, before, after, **further):
    asked = {"decision": "published", "logs": [f"log {number}"], **further}
    at = "2026-01-01T00:00:00Z"
    Decision(number, at, reason="so", before=before, after=after, **asked).write(ws.storage)


def completed(ws):
    with leased(ws.storage, REFRESH) as lease:
        complete(ws, lease)
    return [each.state for each in refreshes.read(ws.storage)]


def lose(ws, kind, build_id):
    shutil.rmtree(Path(ws.run, kind, build_id))


def test_a_rollback_whose_builds_are_gone_moves_nothing(ws):
    before, after = write(ws, "old"), write(ws, "new")
    decide(ws, 1, before, after)
    lose(ws, "changes", before["changes"])
    for _ in range(2):
        with pytest.raises(BuildError, match="holds no changes build"):
            rollback(RefreshesConfig(run=ws.run))
        assert current(ws) == after
        assert len(refreshes.read(ws.storage)) == 1


@pytest.mark.parametrize("kind", ["published", "rolled back"])
def test_what_was_begun_and_cannot_be_completed_stops_no_later_one(ws, kind, caplog):
    first, second = write(ws, "first"), write(ws, "second")
    decide(ws, 1, first, second)
    third = write(ws, "third")
    decide(ws, 2, third, second, decision=kind, state="publishing")
    lose(ws, "changes", second["changes"])
    assert completed(ws) == ["done", "failed"]
    assert "holds no changes build" in caplog.text
    assert current(ws) == third
    assert completed(ws) == ["done", "failed"]
    assert f"{kind}, failed" in status(RefreshesConfig(run=ws.run))
    ledger = refreshes.read(ws.storage)
    assert refreshes.published(ledger) == ledger[:1]


def test_what_was_begun_is_completed_unless_others_went_on(ws, monkeypatch):
    after, before = write(ws, "new"), write(ws, "old")
    decide(ws, 1, before, after, state="publishing")
    ws.take(ws.open("interactions", after["interactions"]))
    assert completed(ws) == ["done"]
    assert current(ws) == after
    decide(ws, 2, after, before, state="publishing")
    by_hand = write(ws, "by hand", kinds=("index",))
    assert completed(ws) == ["done", "abandoned"]
    assert current(ws) == after | by_hand
    monkeypatch.setattr(verbs, "_make_current", None)
    assert completed(ws) == ["done", "abandoned"]


def test_each_rollback_takes_one_refresh_back_a_retraining_too(ws):
    old, new, again = write(ws, "old"), write(ws, "new"), write(ws, "new", kinds=KINDS[:2])
    again |= write(ws, "again", kinds=KINDS[2:])
    decide(ws, 1, old, new)
    decide(ws, 2, new, again, logs=())
    for expected in (new, old):
        rollback(RefreshesConfig(run=ws.run))
        assert current(ws) == expected
    with pytest.raises(BuildError, match="is of no refresh"):
        rollback(RefreshesConfig(run=ws.run))
