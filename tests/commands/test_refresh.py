"""A refresh on a small planted world: published, refused, taken back, killed, twice at once."""

import contextlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from raysys.commands import refresh as command
from raysys.commands import refresh_gate as gate
from raysys.commands.forget import ForgetConfig, forget
from raysys.commands.refresh import RefreshConfig, refresh
from raysys.commands.refresh_models import current
from raysys.commands.refresh_verbs import RefreshesConfig, rollback, status
from raysys.commands.report import write_page
from raysys.data.interactions import InteractionsFacts
from raysys.data.profiles import Profiles
from raysys.errors import BuildError, ConfigError, DataError
from raysys.events.records import EVENTS
from raysys.reports import refreshes
from raysys.search.served import Served
from raysys.simulate.world import World, WorldSpec
from raysys.store.builds import Workspace
from tests.support.logs import prepare_here
from tests.support.pages import checked
from tests.support.weeks import LAUNCH, first_run, shuffled, weeks_of

WEEKS = 9  # of the log that the first model is made of


@pytest.fixture
def here(monkeypatch):
    """Work without a cluster."""
    prepare_here(monkeypatch)
    monkeypatch.setattr(command, "connected", contextlib.nullcontext)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return a folder with a run and the logs of three further weeks."""
    folder = tmp_path_factory.mktemp("refresh")
    spec = WorldSpec(n_users=300, n_items=120, n_interactions=9000, days=7 * (WEEKS + 2), drift=0.3)
    world = World.make(spec)
    weeks = weeks_of(world)
    pq.write_table(world.item_table(), folder / "items.parquet")
    pq.write_table(pa.concat_tables(weeks[:WEEKS]), folder / "base.parquet")
    for number, rows in enumerate(weeks[WEEKS:]):
        pq.write_table(rows, folder / f"{number}.parquet")
    with pytest.MonkeyPatch.context() as patched:
        prepare_here(patched)
        model = {"latent": 16, "level_latent": 8}
        first_run(f"{folder}/run", f"{folder}/base.parquet", model, {"batch_size": 64, "epochs": 2})
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Spare the training that says what is usual at the first refresh."""
    monkeypatch.setattr(gate, "usual_skill", lambda _: {"ndcg@100": 0.01, "nll": 0.05})


@pytest.fixture
def folder(built, tmp_path, here):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run_of(folder, source="0.parquet", **further):
    asked = {"source": None if source is None else f"{folder}/{source}", **further}
    return refresh(RefreshConfig(run=f"{folder}/run", launch=LAUNCH, **asked))


def workspace_of(folder):
    return Workspace(f"{folder}/run")


def decisions_of(folder):
    return refreshes.read(workspace_of(folder).storage)


def rows_of(folder):
    return InteractionsFacts.of(workspace_of(folder).current("interactions")).rows


def write_shuffled(folder, name, column):
    """Write the log of the first week with the values of a column among other rows."""
    pq.write_table(shuffled(pq.read_table(folder / "0.parquet"), [column], 1), folder / name)


def test_new_logs_are_published_once_and_can_be_taken_back(folder):
    before, n_before = current(workspace_of(folder)), rows_of(folder)
    n_new = pq.read_metadata(folder / "0.parquet").num_rows
    first = run_of(folder)
    assert first.extra["decision"] == "published", first.extra
    after = current(workspace_of(folder))
    assert all(after[kind] != before[kind] for kind in before)
    served = Served.open(workspace_of(folder))
    assert {k: v for k, v in served.build_ids.items() if k != "changes"} == after
    assert rows_of(folder) == n_before + first.extra["rows"]["new"] <= n_before + n_new
    [decision] = decisions_of(folder)
    assert (decision.before, decision.after, decision.state) == (before, after, "done")
    assert set(decision.metrics) == {"recall@20", "nll"}
    assert decision.window["start"] < decision.window["cut"] < decision.window["end"]
    assert not (folder / "run/refresh/work").exists()

    again = run_of(folder)
    assert again.extra["decision"] == "nothing new"
    assert current(workspace_of(folder)) == after
    assert len(decisions_of(folder)) == 1
    asked = RefreshesConfig(run=f"{folder}/run")
    assert "published, current" in status(asked)
    page = checked(Path(write_page(workspace_of(folder))).read_text())
    assert "Decisions, the newest first" in page.words

    rollback(asked)
    assert current(workspace_of(folder)) == before
    assert "published, current" not in status(asked)
    with pytest.raises(BuildError, match="is of no refresh"):
        rollback(asked)
    left = run_of(folder)
    assert (left.extra["decision"], left.extra["set_aside"]) == ("nothing new", 1)
    once_more = run_of(folder, retry=True, accept=["items"])
    assert once_more.extra["decision"] == "published"
    assert "the builds of refresh 1, which was rolled back" in once_more.extra["reason"]
    assert current(workspace_of(folder)) == after
    ledger = decisions_of(folder)
    assert [d.decision for d in ledger] == ["published", "rolled back", "published"]
    assert [(len(d.accepted), "@" in d.by) for d in ledger] == [(0, False), (0, False), (1, True)]


def test_a_week_whose_ratings_are_shuffled_is_refused_and_set_aside(folder):
    before = current(workspace_of(folder))
    write_shuffled(folder, "poison.parquet", "rating")
    found = run_of(folder, "poison.parquet")
    assert found.extra["decision"] == "refused", found.extra
    assert "skill of the served model by" in found.extra["reason"]
    assert current(workspace_of(folder)) == before
    again = run_of(folder, "poison.parquet")
    assert (again.extra["decision"], again.extra["set_aside"]) == ("nothing new", 1)


class KilledError(BaseException):
    pass


def test_what_a_killed_refresh_began_to_publish_is_completed(folder, monkeypatch, quick):
    before = current(workspace_of(folder))
    take = Workspace.take

    def killed(self, build):
        if build.kind == "index":
            raise KilledError
        take(self, build)

    monkeypatch.setattr(command, "VALIDATED_USERS", 50)
    with monkeypatch.context() as patched:
        patched.setattr(Workspace, "take", killed)
        with pytest.raises(KilledError):
            run_of(folder)
    served = Served.open(workspace_of(folder))
    assert served.build_ids["autoencoder"] == before["autoencoder"]
    [begun] = decisions_of(folder)
    assert begun.state == "publishing"
    assert run_of(folder).extra["decision"] == "nothing new"
    assert current(workspace_of(folder)) == begun.after
    began = workspace_of(folder).current("autoencoder").manifest.config["begin"]
    assert began["build_id"] == before["autoencoder"]
    [decision] = decisions_of(folder)
    assert decision.state == "done"


def test_of_two_at_once_one_works_and_a_killed_one_leaves_nothing_behind(
    folder, monkeypatch, quick
):
    def killed(*_):
        raise KilledError

    before = current(workspace_of(folder))
    with monkeypatch.context() as patched:
        patched.setattr("raysys.commands.refresh_models.index", killed)
        with pytest.raises(KilledError):
            run_of(folder)
    assert current(workspace_of(folder)) == before
    assert decisions_of(folder) == []
    with ThreadPoolExecutor() as pool:
        items = f"{folder}/items.parquet"
        found = list(pool.map(lambda _: run_of(folder, items=items).extra["decision"], range(2)))
    assert sorted(found) == ["nothing new", "published"]
    titles = Profiles.open(workspace_of(folder).current("profiles")).items["title"]
    assert titles.null_count == 0
    assert len(decisions_of(folder)) == 1


def test_events_are_taken_by_the_name_of_their_file(folder, quick):
    rows = pq.read_table(folder / "0.parquet")
    events = pa.table(
        {
            **{name: rows[name] for name in ("user_id", "item_id", "event", "timestamp")},
            "rating": rows["rating"].cast(pa.float64()),
            "event_id": [f"e{n}" for n in range(len(rows))],
            "received_ms": pc.multiply(rows["timestamp"], 1000),
        }
    ).select(EVENTS.schema.names)
    (folder / "run/events").mkdir()
    path = folder / "run/events/2026-01-01-1-a.parquet"
    pq.write_table(events.cast(EVENTS.schema), path)
    dry = run_of(folder, None, dry_run=True)
    assert dry.extra["events"] == ["events/2026-01-01-1-a.parquet"]
    assert decisions_of(folder) == []
    assert run_of(folder, None, events=False).extra["decision"] == "nothing new"
    found = run_of(folder, None)
    assert found.extra["rows"]["new"] > 0
    pq.write_table(events.slice(1).cast(EVENTS.schema), path)  # a user of it was erased
    assert run_of(folder, None).extra["decision"] == "nothing new"


def test_what_cannot_be_refreshed_says_why_in_one_line(folder, tmp_path):
    pq.write_table(pa.table({"user_id": ["a"], "item_id": ["b"]}), folder / "timeless.parquet")
    pq.write_table(pq.read_table(folder / "0.parquet").slice(0, 0), folder / "empty.parquet")
    for source, error, said in (
        ("nowhere.parquet", DataError, "does not exist"),
        ("timeless.parquet", DataError, "has no column 'timestamp'"),
        ("empty.parquet", DataError, "holds no rows"),
    ):
        with pytest.raises(error, match=said) as raised:
            run_of(folder, source)
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="accept=new items is no guard: accepted are rows, late"):
        run_of(folder, accept=["new items"])
    with pytest.raises(BuildError, match="run the pipeline first"):
        refresh(RefreshConfig(run=str(tmp_path / "other"), source=f"{folder}/0.parquet"))
    assert decisions_of(folder) == []
    shutil.rmtree(folder / "run/refresh", ignore_errors=True)
    (folder / "run/refresh/ledger").mkdir(parents=True)
    (folder / "run/refresh/ledger/000001.json").write_text(json.dumps({"number": 1}))
    with pytest.raises(BuildError, match="is no decision"):
        run_of(folder)


def test_few_new_rows_wait_for_more_and_an_erasure_does_not(folder, quick):
    base = pq.read_table(folder / "base.parquet")
    pq.write_table(base.slice(0, 100), folder / "again.parquet")
    for _ in range(2):
        again = run_of(folder, "again.parquet").extra
        assert (again["decision"], again.get("set_aside", 0)) == ("nothing new", 0)
        assert [d.decision for d in decisions_of(folder)] == ["nothing new"]
    late = base.slice(0, 5).set_column(0, "user_id", pa.array([f"new {n}" for n in range(5)]))
    pq.write_table(late, folder / "late.parquet")
    found = run_of(folder, "late.parquet")
    assert found.extra["reason"] == "no new row is later than the rows before"
    pq.write_table(pq.read_table(folder / "0.parquet").slice(0, 20), folder / "few.parquet")
    found = run_of(folder, "few.parquet")
    assert found.extra["decision"] == "waiting"
    again = run_of(folder, "few.parquet")
    assert (again.extra["decision"], again.extra["waiting"]) == ("nothing new", True)
    others = base.set_column(0, "user_id", pc.binary_join_element_wise("old", base["user_id"], ""))
    new = pq.read_table(folder / "0.parquet").select(others.column_names)
    pq.write_table(pa.concat_tables([others, new]), folder / "before.parquet")
    found = run_of(folder, "before.parquet")  # no window holds what came before the log's end
    assert found.extra["decision"] == "refused"
    assert found.extra["reason"].startswith("share of rows older than the log so far is 0.")
    users = pq.read_table(folder / "base.parquet")["user_id"].unique().to_pylist()[:2]
    for user in users:
        before = current(workspace_of(folder))
        forget(ForgetConfig(run=f"{folder}/run", user_id=user))
        assert run_of(folder, None, dry_run=True).extra["would"] == ["retrain without erased users"]
        assert run_of(folder, None).extra["decision"] == "published"
        after = current(workspace_of(folder))
        assert after["profiles"] == before["profiles"]
        assert after["index"] != before["index"]
        assert f"autoencoder/{before['autoencoder']}" in decisions_of(folder)[-1].retrained
    assert run_of(folder, None).extra["decision"] == "nothing new"
