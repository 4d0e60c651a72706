import logging
from types import SimpleNamespace

import pytest
import ray

from raysys import progress
from raysys.cluster.mailbox import Changed, Closed, Mailbox, Opened, Reader, Started, emptied, told


class Here:
    """A mailbox in this process, called like an actor."""

    def __init__(self):
        self.box = Mailbox()
        self.put = self
        self.remote = self.box.put


class Record:
    """A screen that remembers."""

    def __init__(self):
        self.events = []

    def opened(self, stage):
        self.events.append(("opened", stage.name, stage.total))

    def changed(self, stage, line):
        self.events.append(("changed", round(stage.done, 6), stage.before, stage.rows, line))

    def closed(self, stage, *, finished):
        self.events.append(("closed", stage.name, stage.note, finished))


@pytest.fixture
def logger(monkeypatch):
    """The logger above all of ours, whose handlers and level a worker replaces."""
    root = logging.getLogger("raysys")
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "propagate", True)
    before = root.level
    yield root
    root.setLevel(before)


def test_stages_and_lines_of_rank_0_arrive_in_order(logger, caplog):
    mailbox, seen, reader = Here(), Record(), Reader()
    with told(mailbox, 0), progress.stage("fit", total=4, unit="epochs") as work:
        work.skip(2)
        for _ in range(50):
            work.add(0.02, rows=10)
        logging.getLogger("raysys.training").info("a line")
        work.say("epoch 3", note="best 1")
    letters = mailbox.box.take()
    assert len(letters) < 20  # not one per step
    logger.handlers = []  # the job's process is another one
    caplog.clear()
    with progress.shown_on(seen):
        reader.read(letters)
    assert seen.events[0] == ("opened", "fit", 4)
    assert ("changed", 3.0, 2.0, 500, "epoch 3") in seen.events
    assert seen.events[-1] == ("closed", "fit", "best 1", True)
    assert [r.getMessage() for r in caplog.records] == ["a line"]
    assert mailbox.box.take() == []


def test_other_ranks_tell_errors_alone(logger):
    mailbox = Here()
    with told(mailbox, 1), progress.stage("fit") as work:
        work.add()
        logging.getLogger("raysys.training").info("a line")
        logging.getLogger("raysys.training").error("a fault")
    assert [letter.text for letter in mailbox.box.take()] == ["a fault"]


def test_a_worker_in_place_of_a_lost_one_begins_anew(logger):
    mailbox, seen, reader = Here(), Record(), Reader()
    lost = told(mailbox, 0)
    lost.__enter__()
    progress.stage("fit", total=4).__enter__()
    with told(mailbox, 0), progress.stage("fit", total=4) as work:
        work.add(4)
    lost.__exit__(None, None, None)
    with progress.shown_on(seen):
        reader.read(mailbox.box.take())
    kinds = [event for event in seen.events if event[0] != "changed"]
    assert kinds == [
        ("opened", "fit", 4),
        ("closed", "fit", "", False),
        ("opened", "fit", 4),
        ("closed", "fit", "", True),
    ]


def test_late_letters_of_a_lost_worker_are_passed_over(logger):
    seen = Record()
    late = [Started(), Changed(1, 1.0, 0.0, None, "", ""), Closed(1, finished=True)]
    with progress.shown_on(seen):
        Reader().read([Opened(1, "fit", "steps", 4, progress.CLOCK), *late])
    assert seen.events == [("opened", "fit", 4), ("closed", "fit", "", False)]


def test_a_dead_mailbox_does_not_take_the_place_of_a_result(monkeypatch, caplog):
    def dead(_):
        raise ray.exceptions.RayActorError

    monkeypatch.setattr("raysys.cluster.mailbox.ray.get", dead)
    mailbox = SimpleNamespace(take=SimpleNamespace(remote=lambda: None))
    with emptied(mailbox):
        result = "trained"
    assert result == "trained"
    assert "progress is no longer shown error=RayActorError" in caplog.text
