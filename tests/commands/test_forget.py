"""A user who is forgotten is in no file, is served no more, and does not come back."""

import dataclasses
import html
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.cli import main
from raysys.commands.export import _refuse_erased
from raysys.commands.forget import ForgetConfig, forget
from raysys.commands.forget_search import search
from raysys.config import load
from raysys.data.interactions import InteractionsFacts
from raysys.data.profiles import Profiles, ProfilesFacts
from raysys.errors import BuildError, ConfigError
from raysys.http.follow import Following
from raysys.http.service import Holder
from raysys.index.files import IndexFacts
from raysys.search.query import RecommendQuery, UnknownUserError
from raysys.search.search import Search
from raysys.search.users import UserStore
from raysys.store.builds import Workspace
from raysys.store.erasures import Erasures, merge, models_with_erased, remember
from raysys.store.inventory import Inventory
from raysys.store.kinds import Facts
from raysys.store.storage import Storage
from tests.support.runs import model_run, user_id

WHO = user_id(3)


@pytest.fixture
def ws(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    ws = model_run(tmp_path / "run")[0]
    with_users(ws)
    return ws


def with_users(ws):
    """Let the index keep the users, as the command does."""
    plain = ws.current("index")
    chain = ws.chain(plain)

    def fill(draft):
        for name in plain.files():
            shutil.copyfile(plain.path(name), draft.path(name))
        UserStore.save(Profiles.open(chain["profiles"]), draft)
        return IndexFacts.of(plain)

    inputs = [chain[kind] for kind in plain.manifest.inputs]
    ws.build("index", config={"users": True}, inputs=inputs, write=fill)


def without_users(ws):
    """Let an index be current that keeps none: histories are those of the profiles."""
    ws.go_back(ws.open("index", ws.before("index")[0]))


def told(ws, *words):
    return forget(load(ForgetConfig, [f"run={ws.run}", *words])).extra


def test_a_user_goes_from_builds_reports_and_caches_and_models_are_named(ws):
    before = Profiles.open(ws.current("profiles"))
    cells = before.cells()
    own = cells.counts[3]
    kept = UserStore.open(ws.current("index"))  # mapped: it outlives its files
    assert kept.size_of(WHO) == own
    report = pa.table({"user_id": [user_id(2), WHO], "sum": [1.0, 2.0]})
    folder = Path(ws.run, "reports/scores-1")
    folder.mkdir(parents=True)
    pq.write_table(report, folder / "part.parquet")
    assert search(ws.storage, [WHO]).users == 1
    contents = {kind: ws.current(kind).content_id for kind in ("profiles", "index")}
    done = told(ws, f"user_id={WHO}")
    assert search(ws.storage, [WHO]).held == []
    assert {place.split("/")[0] for place in done["erased"]} == {"profiles", "index", "reports"}
    assert done["searched"]["parquet"] > 2
    assert {kind: ws.current(kind).content_id for kind in contents} == contents
    ws.chain(ws.current("index"))
    left = UserStore.open(ws.current("index"))
    assert (len(left), left.size_of(WHO)) == (len(kept), 0)
    for num in (2, 4, before.n_users - 1):
        assert left.history(user_id(num)).item_num.tolist() == (
            kept.history(user_id(num)).item_num.tolist()
        )
    for kind in contents:
        ws.current(kind).verify()
    after = Profiles.open(ws.current("profiles"))
    assert (after.n_users, after.cells().counts[3]) == (before.n_users, 0)
    others = np.arange(before.n_users) != 3
    assert (after.cells().counts[others] == cells.counts[others]).all()
    assert sum(before.facts.n_cells.values()) - sum(after.facts.n_cells.values()) == own
    assert pq.read_table(folder / "part.parquet")["user_id"].to_pylist() == [user_id(2)]
    assert {place.split("/")[0] for place in done["retrain"]} >= {"autoencoder", "index"}
    assert models_with_erased(ws.storage) == done["retrain"]
    assert all(not files for files in Inventory(ws.storage).orphans().values())
    again = told(ws, f"user_id={WHO}")
    assert again["erased"] == {}


@pytest.mark.parametrize("source", [lambda ws: None, without_users], ids=["index", "profiles"])
def test_a_running_service_forgets_too_and_serves_the_others_as_before(ws, source):
    source(ws)
    holder = Holder(Search.open(ws))
    following = Following(holder, ws, every_s=60)
    assert not following.look()
    query = RecommendQuery(user_id=user_id(5), k=5)
    listed = [hit.item_id for hit in holder().recommend(query).items]
    holder().recommend(RecommendQuery(user_id=WHO, k=5))
    told(ws, f"user_id={WHO}")
    assert following.look()
    with pytest.raises(UnknownUserError):
        holder().recommend(RecommendQuery(user_id=WHO, k=5))
    assert [hit.item_id for hit in holder().recommend(query).items] == listed


KILLED = """
import os, signal, sys
from raysys.store.storage import Storage
from raysys.commands.forget import ForgetConfig, forget
count = int(sys.argv[3])
def counted(name):
    real = getattr(Storage, name)
    def call(self, what, *rest):
        global count
        if not what.startswith(("locks/", ".now")):
            count -= 1
            if count == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(self, what, *rest)
    setattr(Storage, name, call)
for name in ("write_atomic", "remove", "rename"):
    counted(name)
forget(ForgetConfig(run=sys.argv[1], user_id=sys.argv[2]))
"""


@pytest.mark.parametrize("moment", [2, 6, 12])
def test_a_kill_at_any_moment_is_completed_by_running_it_again(ws, moment):
    words = [sys.executable, "-c", KILLED, ws.run, WHO, str(moment)]
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run(words, cwd=root).returncode == -signal.SIGKILL
    ws.chain(ws.current("index"))
    ws.current("index").verify()
    told(ws, f"user_id={WHO}")
    assert search(ws.storage, [WHO]).held == []
    assert Inventory(ws.storage).orphans() == {}
    Search.open(ws)


def test_many_users_and_files_of_them(ws, tmp_path):
    names = tmp_path / "leavers.txt"
    names.write_text(f"{user_id(1)}\n{user_id(2)}\n")
    told(ws, f"users_file={names}", f"user_ids=[{json.dumps(WHO)}]")
    assert search(ws.storage, [WHO, user_id(1), user_id(2)]).users == 0
    assert search(ws.storage, [user_id(4)]).users == 1


def test_one_who_is_held_nowhere_is_remembered_all_the_same(ws):
    assert told(ws, "user_id=no one")["erased"] == {}
    erasures = Erasures.of(ws.storage)
    assert erasures.moment("no one") is not None
    assert erasures.moment(WHO) is None
    assert "no one" not in Path(ws.run, "erased.json").read_text()


def test_no_one_named_is_one_line(ws, tmp_path):
    with pytest.raises(ConfigError, match="forget needs user_id="):
        told(ws)
    with pytest.raises(ConfigError, match="cannot be read"):
        told(ws, f"users_file={tmp_path}/none")


def test_rows_of_an_old_log_stay_away_and_newer_ones_come(small_log, tmp_path, capfd):
    run = str(tmp_path / "run")
    words = ["prepare", f"run={run}", f"source={small_log}"]
    assert main(words) == 0
    ws = Workspace(run)
    first = ws.current("interactions")
    rows = pq.read_table(first.path("part-00000.parquet"))
    n_own = rows["user_id"].to_pylist().count("user 7")
    assert main(["forget", f"run={run}", "user_id=user 7"]) == 0
    left = InteractionsFacts.of(ws.current("interactions"))
    facts = InteractionsFacts.of(first)
    assert (left.rows, left.n_users) == (facts.rows - n_own, facts.n_users - 1)
    assert main(words) == 0
    again = ws.current("interactions")
    assert again.build_id != first.build_id
    assert InteractionsFacts.of(again).erased == n_own
    assert InteractionsFacts.of(again).rows == left.rows
    assert ProfilesFacts.of(ws.current("profiles")).n_users == facts.n_users - 1
    assert search(ws.storage, ["user 7"]).held == []
    assert models_with_erased(ws.storage) == []
    other = Storage(str(tmp_path / "other"))  # an export into a run that forgot others
    remember(other, ["user 7"])
    _refuse_erased({"interactions": again}, other)
    remember(other, ["user 8"])
    with pytest.raises(BuildError, match="was made to forget users"):
        _refuse_erased({"interactions": again}, other)
    capfd.readouterr()


@pytest.mark.parametrize("number", ["42", "7"])
def test_numbers_of_users_are_told_from_other_numbers(tmp_path, number):
    ws = Workspace(str(tmp_path / "run"))
    ws.storage.write_atomic("reports/a.json", json.dumps({"k": number, "items": [number, 42]}))
    assert search(ws.storage, [number]).users == 0
    ws.storage.write_atomic("reports/b.json", json.dumps({"user_id": number}))
    assert search(ws.storage, [number]).held == ["reports/b.json"]


@pytest.mark.parametrize("word", ["model", "autoencoder", "adam", "42"])
def test_an_id_that_is_a_word_of_settings_takes_no_model(ws, word):
    held = {kind: ws.current(kind).state() for kind in ("autoencoder", "embeddings", "index")}
    assert told(ws, f"user_id={word}")["erased"] == {}
    assert {kind: ws.current(kind).state() for kind in held} == held


def test_a_model_that_holds_a_user_is_named_and_nothing_goes(ws):
    model = ws.current("autoencoder")

    def fill(draft):
        for name in model.files():
            shutil.copyfile(model.path(name), draft.path(name))
        draft.path("notes.json").write_text(json.dumps({"users": [WHO]}))
        return LinearFacts.of(model)

    inputs = [ws.open(kind, ref["build_id"]) for kind, ref in model.manifest.inputs.items()]
    ws.build("autoencoder", config={"noted": True}, inputs=inputs, write=fill)
    with pytest.raises(BuildError, match=r"autoencoder/.*notes.json holds a user"):
        told(ws, f"user_id={WHO}")
    assert search(ws.storage, [WHO], names=list(names_of(ws, "profiles"))).users == 1


def names_of(ws, kind):
    return Inventory(ws.storage).builds[ws.current(kind).place].files


@dataclasses.dataclass(frozen=True)
class LinearFacts(Facts):
    """Any facts."""

    @classmethod
    def of(cls, build):
        return cls()


def test_baselines_go_back_and_those_of_a_killed_erasure_go_too(ws, monkeypatch):
    def fitted(text):
        def fill(draft):
            draft.path("a.txt").write_text(text)
            return LinearFacts()

        inputs = [ws.current("profiles")]
        return ws.build("baselines", config={"text": text}, inputs=inputs, write=fill)

    first, second = fitted("a"), fitted("b")
    with monkeypatch.context() as killed:
        killed.setattr("raysys.commands.forget.stale_baselines", lambda _: [])
        told(ws, f"user_id={WHO}")
    path = Path(ws.run, first.place, "manifest.json")
    record = json.loads(path.read_text())
    record["inputs"]["profiles"]["erased"] = 1  # as if fitted after the erasure
    path.write_text(json.dumps(record))
    done = told(ws, "user_id=no one")
    assert list(done["erased"]) == [second.place]
    assert (ws.current("baselines").build_id, ws.before("baselines")) == (first.build_id, [])
    assert not Path(ws.run, second.place).exists()


def test_a_job_that_writes_rows_is_waited_for_or_named(ws, caplog):
    profiles = ws.current("profiles")

    def fill(draft):
        draft.path("a.txt").write_text("a")
        with pytest.raises(BuildError, match=r"writes profiles/.*run forget again"):
            told(ws, f"user_id={WHO}")
        return LinearFacts()

    ws.build("profiles", config={"other": 1}, write=fill)
    assert search(ws.storage, [WHO], names=[f"{profiles.folder}/users.parquet"]).users == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps({"users": {"chosen": 1}, "user_ids": ["7", "42"]})),
        ("a.json", json.dumps({"user": {"id": 42}})),
        ("a.jsonl", json.dumps({"n": 1}) + "\n" + json.dumps({"said": "no user_id='42' here"})),
        ("a.html", "<table><tr><th>user</th><th>k</th></tr><tr><td>42</td><td>1</td></tr></table>"),
        ("a.csv", "k,user_id\n1,42\n"),
        ("a.md", "user 42"),
    ],
)
def test_users_are_found_where_they_are_named(tmp_path, name, text):
    ws = Workspace(str(tmp_path / "run"))
    ws.storage.write_atomic(f"reports/{name}", text)
    assert search(ws.storage, ["42"]).users == 1
    assert search(ws.storage, ["43", "chosen", "here", "k"]).users == 0


@pytest.mark.parametrize("who", ["Jürgen", 'the "best" & <only>', "a\\b"])
def test_ids_that_are_escaped_are_found(tmp_path, who):
    ws = Workspace(str(tmp_path / "run"))
    cell = html.escape(who)
    table = f"<table><tr><th>user_id</th></tr><tr><td>{cell}</td></tr></table>"
    ws.storage.write_atomic("reports/a.html", table)
    ws.storage.write_atomic("reports/a.json", json.dumps({"user_id": who}))
    assert search(ws.storage, [who]).held == ["reports/a.html", "reports/a.json"]


def test_the_order_of_an_erasure_goes_where_the_journal_is_empty(tmp_path):
    ws = Workspace(str(tmp_path / "run"))
    ws.storage.write_atomic("journal/events/.keep", "")
    told(ws, "user_id=some one")
    assert all(
        "some one" not in path.read_text() for path in Path(ws.run).rglob("*") if path.is_file()
    )


def test_erasures_of_two_runs_come_together(tmp_path):
    one, other = Storage(str(tmp_path / "one")), Storage(str(tmp_path / "other"))
    merge(one, other)
    assert Erasures.of(other) is None
    remember(one, ["a"])
    alone = Erasures.of(one)
    merge(one, other)
    assert Erasures.of(other).identity == alone.identity
    third = Storage(str(tmp_path / "third"))
    remember(third, ["b"])
    merge(third, other)
    merge(third, other)
    both = Erasures.of(other)
    assert (both.moment("a"), both.moment("c")) == (alone.moment("a"), None)
    assert both.moment("b") == Erasures.of(third).moment("b")
