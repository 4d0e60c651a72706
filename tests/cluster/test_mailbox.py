import logging
import time
from types import SimpleNamespace

import pytest
import ray

from raysys import progress
from raysys.cluster import mailbox as mailboxes
from raysys.cluster.mailbox import (
    Changed,
    Closed,
    LogLine,
    Losses,
    Lost,
    Mailbox,
    Opened,
    Reader,
    Started,
    emptied,
    told,
)


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
    fit = Opened("a", 1, "fit", "steps", 4, progress.CLOCK)
    late = [Started("b"), Changed("a", fit, 1.0, 0.0, None, "", ""), Closed("a", 1, finished=True)]
    with progress.shown_on(seen):
        Reader().read([fit, *late])
    assert seen.events == [("opened", "fit", 4), ("closed", "fit", "", False)]


def test_any_letter_of_rank_0_says_that_workers_are_there(caplog):
    seen, reader = Record(), Reader()
    fit = Opened("a", 3, "fit", "epochs", 9, progress.CLOCK)
    with progress.shown_on(seen):
        reader.read([LogLine("", logging.ERROR, "of rank 1")])
        assert reader.absent_s() > 0
        reader.read([Changed("a", fit, 3.5, 2.0, 70, "", ""), Changed("a", fit, 4, 2, 80, "", "")])
    assert reader.absent_s() == 0
    assert seen.events[0] == ("opened", "fit", 9)
    assert seen.events[-1] == ("changed", 4, 2, 80, "")
    reader.read([Lost(0, "ActorDiedError"), LogLine("a", logging.ERROR, "late")])
    assert reader.absent_s() > 0
    assert "late" in caplog.messages


def test_a_dead_mailbox_does_not_take_the_place_of_a_result(monkeypatch, caplog):
    def dead(_):
        raise ray.exceptions.RayActorError

    monkeypatch.setattr("raysys.cluster.mailbox.ray.get", dead)
    mailbox = SimpleNamespace(take=SimpleNamespace(remote=lambda: None))
    with emptied(mailbox):
        result = "trained"
    assert result == "trained"
    assert "progress is no longer shown error=RayActorError" in caplog.text


def test_a_mailbox_that_starts_anew_is_read_again(monkeypatch):
    answers = [ray.exceptions.ActorUnavailableError("anew", None), [], []]
    asked = []

    def get(_):
        asked.append(True)
        answer = answers.pop(0) if answers else []
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(mailboxes, "_POLL_S", 0.001)
    monkeypatch.setattr(mailboxes.ray, "get", get)
    with emptied(SimpleNamespace(take=SimpleNamespace(remote=lambda: None))):
        until = time.monotonic() + 10
        while len(asked) < 3 and time.monotonic() < until:
            time.sleep(0.001)
    assert len(asked) >= 3


def test_the_job_says_what_it_waits_for_until_workers_are_there(monkeypatch, caplog):
    here = Here()
    monkeypatch.setattr(mailboxes, "_POLL_S", 0.001)
    monkeypatch.setattr(mailboxes, "_WAIT_S", 0.02)
    monkeypatch.setattr(mailboxes.ray, "get", lambda letters: letters)

    def lines():
        return sum("waiting for workers" in message for message in caplog.messages)

    def waited(more):
        before, until = lines(), time.monotonic() + 5
        while lines() < before + more and time.monotonic() < until:
            time.sleep(0.001)
        return lines() >= before + more

    box = SimpleNamespace(take=SimpleNamespace(remote=here.box.take))
    answers = [ray.exceptions.RpcError("no head")]

    def asked():
        if answers:
            raise answers.pop()
        return "2 workers of 1 CPU"

    with caplog.at_level("INFO"), emptied(box, waiting=asked):
        assert waited(2)
        here.box.put(Started("a"))
        time.sleep(0.02)
        before = lines()
        time.sleep(0.1)
        assert lines() == before
        Losses(here).after_exception(None, {1: ValueError(), 0: RuntimeError()})
        assert waited(2)
    assert "workers stopped rank=0 reason=RuntimeError" in caplog.text
    assert "the cluster does not say what it has: RpcError" in caplog.text
    assert caplog.messages[-1].endswith("2 workers of 1 CPU")


def test_the_job_says_what_the_loss_of_workers_cost(caplog):
    def fit(worker, before, done):
        stage = Opened(worker, 1, "fit", "epochs", 9, progress.CLOCK)
        return [Started(worker), stage, Changed(worker, stage, done, before, None, "", "")]

    reader = Reader()
    with caplog.at_level("INFO"):
        reader.read([*fit("a", 0.0, 3.4), Lost(1, "ActorDiedError"), *fit("b", 3.25, 3.25)])
        reader.read(fit("b", 3.25, 3.35)[-1:])
    assert "fit goes on from=3.25 was=3.40 epochs" in caplog.messages
