"""What is acknowledged is there after any end of the process, each record once."""

import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from raysys.errors import BuildError
from raysys.events.feed import Feed, FeedOptions, now_ms
from raysys.events.fold import DAMAGED, Erasure, began, erasures, files_of, fold, is_due, read_file
from raysys.events.journal import Journal, is_complete, whole_lines
from raysys.events.records import EVENTS, IMPRESSIONS, Event, events_in, lines_of
from raysys.events.tail import Tail
from raysys.store.storage import Storage

NOW = 1_790_000_000


def event(number, user="u", at=None, received_ms=0):
    time = NOW + number if at is None else at
    return Event(f"e{number}", user, f"item-{number}", None, 4.0, time, received_ms)


def written(storage, *events):
    journal = Journal(storage, EVENTS)
    journal.append(lines_of(e._asdict() for e in events)).result(timeout=10)
    journal.close()


def rows(storage, table=EVENTS):
    return [
        row
        for name in files_of(storage, table)
        for row in pq.read_table(storage.url(name)).to_pylist()
    ]


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "run"))


def test_lines_hold_what_an_event_is(storage):
    odd = event(1)._replace(item_id='a"b\n\u2028é', event="buy", rating=None)
    assert events_in(lines_of([odd._asdict(), event(2)._asdict()])) == [odd, event(2)]


def test_half_a_line_is_no_event():
    lines = lines_of([event(1)._asdict()])
    assert whole_lines(lines + b'{"event_id": "e2", "us') == lines
    assert whole_lines(b"half") == b""


def test_a_segment_is_complete_once_its_process_is_gone(storage):
    code = (
        "import sys, time; from raysys.events.journal import Journal;"
        "from raysys.events.records import EVENTS; from raysys.store.storage import Storage;"
        "Journal(Storage(sys.argv[1]), EVENTS).append(b'{}\\n').result(); print('ok', flush=True);"
        "time.sleep(60)"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, storage.run], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "ok\n"
    [name] = began(storage, until_ms=now_ms())
    assert not is_complete(storage, name)
    writer.kill()
    writer.wait()
    assert is_complete(storage, name)
    writer.stdout.close()


def test_what_cannot_be_written_is_told_and_what_comes_next_is_written(storage, monkeypatch):
    journal = Journal(storage, EVENTS)
    journal.append(lines_of([event(1)._asdict()])).result(timeout=10)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            journal.append(lines_of([event(2)._asdict()])).result(timeout=10)
    journal.append(lines_of([event(3)._asdict()])).result(timeout=10)
    journal.close()
    assert polled(Tail(storage, EVENTS)) == [event(1), event(3)]


def polled(tail):
    events = []
    assert tail.poll(lambda lines: events.extend(events_in(lines)))
    return events


def test_a_tail_gives_every_line_once(storage):
    tail = Tail(storage, EVENTS)
    assert polled(tail) == []
    journal = Journal(storage, EVENTS)
    own = Tail(storage, EVENTS, own=journal.name)
    for number in range(3):
        journal.append(lines_of([event(number)._asdict()])).result(timeout=10)
        assert polled(tail) == [event(number)]
        assert polled(tail) == polled(own) == []
    journal.close()


def test_what_a_tail_cannot_read_is_read_the_next_time(storage, monkeypatch):
    written(storage, event(1))
    time.sleep(0.002)  # names begin with the time
    written(storage, event(2))
    time.sleep(0.002)
    written(storage, event(3))
    tail, read, events = Tail(storage, EVENTS), Tail._from, []
    second = began(storage, until_ms=now_ms())[1].rpartition("/")[2]

    def failing(self, name, start):
        if name == second:
            raise BuildError("the storage is away")
        return read(self, name, start)

    with monkeypatch.context() as patch:
        patch.setattr(Tail, "_from", failing)
        with pytest.raises(BuildError, match="away"):
            tail.poll(lambda lines: events.extend(events_in(lines)))
    assert events == [event(1), event(3)]
    assert polled(tail) == [event(2)]


def test_a_segment_that_is_folded_under_a_tail_is_told(storage, monkeypatch):
    written(storage, event(1))
    monkeypatch.setattr(Tail, "_from", lambda *_: None)
    assert not Tail(storage, EVENTS).poll(lambda _: None)


def test_a_fold_keeps_each_record_once(storage):
    written(storage, event(1), event(2), event(1), event(1, user="other"))
    written(storage, event(2)._replace(rating=1.0), event(3))
    done = fold(storage, settled_s=0)["events"]
    assert (done.added, done.repeated) == (4, 2)
    written(storage, event(3), event(4))
    done = fold(storage, settled_s=0)["events"]
    assert (done.added, done.repeated) == (1, 1)
    found = [(row["user_id"], row["event_id"], row["rating"]) for row in rows(storage)]
    users = [("u", "e1"), ("u", "e2"), ("other", "e1"), ("u", "e3"), ("u", "e4")]
    assert found == [(*key, 4.0) for key in users]
    assert began(storage, until_ms=now_ms()) == []


def test_a_fold_that_was_killed_before_its_end_is_done_again(storage, monkeypatch):
    written(storage, event(1), event(2))
    remove = Storage.remove

    def killed(self, name):
        if name.startswith("journal/events"):
            raise BuildError("killed")
        remove(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "remove", killed)
        with pytest.raises(BuildError, match="killed"):
            fold(storage, settled_s=0)
    assert fold(storage, settled_s=0)["events"].repeated == 2
    assert [row["event_id"] for row in rows(storage)] == ["e1", "e2"]


def test_damaged_lines_are_kept_apart_and_the_rest_counts(storage, caplog):
    good = lines_of([event(1)._asdict(), event(2)._asdict()])
    odd = [b'{"user_id": [\n', b"\xff\xfe\n", b'{"user_id": null}\n', b"[]\n", b'{"a": 1}\n']
    name = "0000000000001-00000000-000001.jsonl"
    lines = good.splitlines(keepends=True)
    storage.write_atomic(f"journal/events/{name}", b"".join([lines[0], *odd, lines[1]]))
    for other in (".nfs0001", "note.txt", f".{name}.0a1b2c3d"):
        storage.write_atomic(f"journal/events/{other}", b"x")
    feed = Feed(storage, FeedOptions(event_time=True))
    feed.look()
    assert feed.of("u") == [event(1), event(2)]
    done = fold(storage, settled_s=0)["events"]
    assert (done.added, done.damaged) == (2, len(odd))
    assert [row["event_id"] for row in rows(storage)] == ["e1", "e2"]
    assert storage.read(f"{DAMAGED}/events-{name}") == b"".join(odd)
    assert "journal damaged" in caplog.text
    assert began(storage, until_ms=now_ms()) == []


def test_impressions_are_folded_beside_events(storage):
    shown = dict.fromkeys(IMPRESSIONS.schema.names)
    shown |= {"impression_id": "i1", "item_ids": ["a", "b"], "user_id": "u", "received_ms": 1}
    other = shown | {"impression_id": "i2", "item_ids": []}
    for given, added in (([shown, shown], 1), ([other, shown], 1), ([other], 0)):
        journal = Journal(storage, IMPRESSIONS)
        journal.append(lines_of(given)).result(timeout=10)
        journal.close()
        assert fold(storage, settled_s=0)["impressions"].added == added
    assert rows(storage, IMPRESSIONS) == [shown, other]


def test_what_rests_too_shortly_is_left(storage):
    written(storage, event(1))
    assert fold(storage, settled_s=60)["events"].added == 0
    assert len(began(storage, until_ms=now_ms())) == 1


def test_what_was_folded_long_ago_is_known_as_well(storage):
    """A fold was killed before its end on a Friday, and the service starts again on a Tuesday."""
    long_ago = now_ms() - 9 * 86_400_000
    written(storage, event(1, received_ms=long_ago))
    [segment] = began(storage, until_ms=now_ms())
    content = storage.read(segment)
    fold(storage, settled_s=0)
    [name] = files_of(storage, EVENTS)
    old = time.strftime("%Y-%m-%d", time.gmtime(long_ago / 1e3))
    storage.write_atomic(f"events/{old}-1-00000000.parquet", storage.read(name))
    storage.remove(name)
    storage.write_atomic(segment, content)
    assert fold(storage, settled_s=0)["events"].repeated == 1
    assert len(rows(storage)) == 1


def test_a_journal_is_folded_when_it_is_old_or_an_erasure_waits(storage):
    assert not is_due(storage)
    written(storage, event(1))
    assert not is_due(storage)
    Erasure("u", now_ms()).order(storage)
    assert is_due(storage)
    fold(storage, settled_s=0)
    assert not is_due(storage)
    storage.write_atomic("journal/events/0000000000001-00000000-000001.jsonl", b"")
    assert is_due(storage)


def test_folds_that_are_killed_lose_and_double_nothing(storage):
    """One process writes and folds all the time and is killed, again and again."""
    code = (
        "import sys; from raysys.events.feed import Feed; from raysys.events.fold import fold;"
        "from raysys.events.records import Event; from raysys.store.storage import Storage\n"
        "from raysys.store import leases; leases._POLL_S = 0.001\n"
        "storage = Storage(sys.argv[1])\n"
        "for n in range(10**6):\n"
        "    feed = Feed(storage)\n"
        "    feed.accept([Event(f'{sys.argv[2]}-{n}', 'u', 'i', None, None, n, 0)]).result()\n"
        "    print(n, flush=True)\n"
        "    feed.stop(); fold(storage, settled_s=0)\n"
    )
    sent = set()
    for number in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", code, storage.run, str(number)],
            stdout=subprocess.PIPE,
            text=True,
        )
        lines = [writer.stdout.readline() for _ in range(3 + 2 * number)]
        time.sleep(0.003 * number)
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
        writer.stdout.close()
        writer.wait()
        sent |= {f"{number}-{int(line)}" for line in lines if line.endswith("\n")}
    fold(storage, settled_s=0)
    found = [row["event_id"] for row in rows(storage)]
    assert len(found) == len(set(found))
    assert sent <= set(found)


def test_an_erased_user_never_comes_back(storage):
    written(storage, event(1, received_ms=10), event(2, user="other", received_ms=10))
    fold(storage, settled_s=0)
    Erasure("u", 20).order(storage)
    written(storage, event(3, received_ms=15), event(4, received_ms=25))
    done = fold(storage, settled_s=0)["events"]
    assert (done.added, done.erased) == (1, 2)
    assert [(r["user_id"], r["event_id"]) for r in rows(storage)] == [("other", "e2"), ("u", "e4")]
    assert erasures(storage) == []  # long ago, and nothing from before it is left


def test_an_erasure_stands_while_segments_from_before_it_may_come(storage):
    Erasure("u", now_ms()).order(storage)
    fold(storage, settled_s=0)
    assert [order.user_id for order in erasures(storage)] == ["u"]


# -- the feed of a replica -----------------------------------------------------------------


def in_time(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def feeds(storage):
    made = [Feed(storage, FeedOptions(event_time=True)) for _ in range(2)]
    for feed in made:
        feed.start()
    yield made
    for feed in made:
        feed.stop()


def test_what_one_replica_takes_all_follow(feeds):
    first, second = feeds
    first.accept([event(1)]).result(timeout=10)
    assert first.of("u") == [event(1)]
    in_time(lambda: second.of("u") == [event(1)])
    second.accept([event(1), event(2)]).result(timeout=10)  # a request that was repeated
    in_time(lambda: first.of("u") == [event(1), event(2)])


def test_a_replica_that_starts_reads_what_there_is(storage, feeds):
    feeds[0].accept([event(1)]).result(timeout=10)
    written(storage, event(2))
    fold(storage, settled_s=0)
    late = Feed(storage, FeedOptions(event_time=True))
    late.look()
    assert set(late.of("u")) == {event(1), event(2)}


def test_all_replicas_forget_an_erased_user(storage, feeds):
    now = now_ms()
    feeds[0].accept([event(1, received_ms=now), event(2, user="other")]).result(timeout=10)
    in_time(lambda: feeds[1].of("u"))
    feeds[0].erase("u")
    assert not feeds[0].of("u")
    in_time(lambda: not feeds[1].of("u"))
    later = event(3, received_ms=now + 60_000)
    feeds[0].accept([later]).result(timeout=10)
    assert feeds[0].of("u") == [later]
    assert feeds[1].of("other") == [event(2, user="other")]
    fresh = Feed(storage, FeedOptions(event_time=True))
    fresh.look()
    assert fresh.of("u") == [later]


def test_events_count_for_as_long_as_they_may(storage):
    feed = Feed(storage, FeedOptions(ttl_s=100, event_time=True))
    feed.accept([event(1, at=NOW), event(2, at=NOW + 99)]).result(timeout=10)
    assert [e.event_id for e in feed.of("u")] == ["e1", "e2"]
    feed.accept([event(3, user="other", at=NOW + 150)]).result(timeout=10)
    assert [e.event_id for e in feed.of("u")] == ["e2"]
    feed.accept([event(4, at=NOW + 10)]).result(timeout=10)
    assert [e.event_id for e in feed.of("u")] == ["e2"]
    feed.accept([event(5, user="other", at=NOW + 250)]).result(timeout=10)
    feed.recent.expire(feed.now())
    assert (feed.recent.n_users, feed.recent.n_events) == (1, 2)


def test_a_damaged_file_is_named_and_the_others_are_read(storage, caplog):
    written(storage, event(1))
    fold(storage, settled_s=0)
    storage.write_atomic("events/2000-01-01-1-00000000.parquet", b"PAR1 or not")
    storage.write_atomic("events/2000-01-02-1-00000000.parquet", b"")
    feed = Feed(storage, FeedOptions(event_time=True))
    feed.look()
    assert feed.of("u") == [event(1)]
    assert caplog.text.count("events are not read path=events/2000-01-0") == 2


def test_a_replica_that_slept_begins_anew(storage):
    """The order to erase a user may have come and gone meanwhile."""
    feed, other = (Feed(storage, FeedOptions(event_time=True)) for _ in range(2))
    feed.look()
    feed.accept([event(1), event(2, user="gone")]).result(timeout=10)
    feed._journal.close()
    Erasure("gone", 20).order(storage)
    fold(storage, settled_s=0)
    assert erasures(storage) == []
    other.accept([event(3)]).result(timeout=10)
    feed._looked -= 400
    feed.look()
    assert set(feed.of("u")) == {event(1), event(3)}
    assert not feed.of("gone")


def test_memory_is_bounded(storage):
    feed = Feed(storage, FeedOptions(most=10, event_time=True))
    for number in range(30):
        feed.accept([event(number, user=f"u{number % 6}")]).result(timeout=10)
    assert feed.recent.n_events <= 10
    assert feed.recent.n_dropped == 30 - feed.recent.n_events
    assert feed.of("u5")


def test_signals_do_not_lose_what_was_acknowledged(storage):
    """Three writers are killed in the middle of their work, again and again."""
    code = (
        "import sys; from raysys.events.feed import Feed; from raysys.events.records import Event;"
        "from raysys.store.storage import Storage; feed = Feed(Storage(sys.argv[1]))\n"
        "for n in range(10**6):\n"
        "    ids = [f'{sys.argv[2]}-{n}-{k}' for k in range(7)]\n"
        "    feed.accept([Event(i, 'u', 'i', None, None, n, 0) for i in ids]).result()\n"
        "    print(n, flush=True)\n"
    )
    acknowledged = {}
    for number in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", code, storage.run, str(number)],
            stdout=subprocess.PIPE,
            text=True,
        )
        lines = [writer.stdout.readline() for _ in range(20 + 30 * number)]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
        writer.stdout.close()
        writer.wait()
        acknowledged[number] = int([line for line in lines if line.endswith("\n")][-1])
        fold(storage, settled_s=0)
    found = [row["event_id"] for row in rows(storage)]
    assert len(found) == len(set(found))
    for number, last in acknowledged.items():
        sent = {f"{number}-{n}-{k}" for n in range(last + 1) for k in range(7)}
        assert sent <= set(found)


# -- in an object store --------------------------------------------------------------------


def test_replicas_follow_each_other_in_an_object_store(s3_bucket):
    storage = Storage(f"{s3_bucket}/events-{now_ms()}")
    first, second = (Feed(storage, FeedOptions(event_time=True)) for _ in range(2))
    for feed in (first, second):
        feed.start()
    now = now_ms()
    batches = [[event(10 * n + k, received_ms=now) for k in range(5)] for n in range(4)]
    for done in [first.accept(batch) for batch in batches]:
        done.result(timeout=20)
    in_time(lambda: len(second.of("u")) == 20)
    second.accept([event(0, received_ms=now), event(1, user="other", received_ms=now)]).result()
    for feed in (first, second):
        feed.stop()
    done = fold(storage, settled_s=-5)["events"]  # clocks of stores have no fractions
    assert (done.added, done.repeated) == (21, 1)
    Erasure("u", now).order(storage)
    assert fold(storage, settled_s=-5)["events"].erased == 20
    [name] = files_of(storage, EVENTS)
    assert [row["user_id"] for row in read_file(storage, name).to_pylist()] == ["other"]
    late = Feed(storage, FeedOptions(event_time=True))
    late.look()
    assert [e.event_id for e in late.of("other")] == ["e1"]
    assert not late.of("u")
