import contextlib
import dataclasses
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from mlflow import MlflowClient

from raysys.cluster.sweep_runner import DONE
from raysys.commands import tune_best, tune_run, tune_sweep, tune_verbs
from raysys.commands.index import IndexConfig
from raysys.commands.train import TrainConfig
from raysys.commands.trial import Measured, TrialPlan
from raysys.commands.tune import TuneConfig
from raysys.commands.tune_sweep import Sweep
from raysys.config import load
from raysys.errors import ConfigError
from raysys.store.builds import StageResult
from raysys.store.leases import leased
from raysys.store.storage import Storage
from raysys.sweeps.requests import Requests
from raysys.sweeps.study import Drawing, Trial, opened
from raysys.training.optim import OptimConfig
from tests.support.training import planted_run


def space(*words):
    return load(TuneConfig, list(words)).space


def test_values_have_the_type_of_the_key_that_they_are_for():
    found = space(
        "space={autoencoder: {profile_exponent: [0.3, 1]}, compressor: {n_active: [null, 32]}}",
        "space.optim.lr={low: 1e-3, high: 1, log: on}",
        "space.optim.epochs={low: 2, high: 4}",
        "space.autoencoder.zero_diagonal=[on, false]",
    )
    assert found == {
        "autoencoder.profile_exponent": [0.3, 1.0],
        "compressor.n_active": [None, 32],
        "optim.lr": {"low": 0.001, "high": 1.0, "log": True},
        "optim.epochs": {"low": 2, "high": 4, "log": False},
        "autoencoder.zero_diagonal": [True, False],
    }
    assert isinstance(found["optim.lr"]["high"], float)
    assert isinstance(found["optim.epochs"]["low"], int)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "space.optim.lrr=[1]",
            r"unknown key 'space\.optim\.lrr'; did you mean 'space",
        ),
        ("space.optim.lr=[fast]", r"space\.optim\.lr='fast' is not accepted: expected a number"),
        ("space.optim.lr=[-1]", r"optim\.lr=-1\.0 is not accepted"),
        ("space.optim.lr=[]", "expected a list of one value or more"),
        ("space.optim.lr={low: 2, high: 1}", "expected low < high"),
        ("space.compressor.keep={low: null, high: 4}", "expected low < high"),
        ("space.optim.lr={low: 1, high: 2, log: 3}", r"space\.optim\.lr\.log='3' is not accepted"),
        ("space=3", "expected a mapping"),
    ],
)
def test_a_space_that_cannot_be_searched_is_one_line(word, message):
    with pytest.raises(ConfigError, match=message):
        space(word)


def test_keys_of_before_are_searched_by_their_names_of_today(monkeypatch, caplog):
    gone, domain = "space.autoencoder.level_weight=[1,5]", [0.1, 0.2]
    assert space(gone, "space.optim.lr=[0.1, 0.2]") == {"optim.lr": domain}
    assert caplog.text.count("key space.autoencoder.level_weight is gone") == 1
    with pytest.raises(ConfigError, match=r"space=.*level_weight.* is not accepted"):
        space(gone)
    monkeypatch.setattr(OptimConfig, "RENAMED", {"rate": "lr"}, raising=False)
    assert space("space.optim.rate=[0.1, 0.2]") == {"optim.lr": domain}
    assert "key space.optim.rate is called space.optim.lr now" in caplog.text
    with pytest.raises(ConfigError, match="one key with two values"):
        space("space.optim.rate=[0.1]", "space.optim.lr=[0.2]")


NUMBERS = str([*range(1, 21)])
HUGE = "{" + ", ".join(f"{k}: {NUMBERS}" for k in ("latent", "level_latent", "channels")) + "}"
HUGE = HUGE.replace("}", f", level_channels: {NUMBERS}}}")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("metrics=[]", r"metrics=\[\] is not accepted"),
        ("metrics=[nll,nll]", "each once"),
        ("metrics=[precision@3]", r"metrics='precision@3' is not accepted: expected recall@K"),
        ("stop_on=bytes", "a metric that epochs are chosen by"),
        (f"space.autoencoder={HUGE}", "a grid of 160,000 settings"),
        ("sampler=grid", "needs lists alone in space"),
        ("sampler=nsga2", "nsga2 for several metrics only"),
        ("space.prepare.min_item_rows=[1,2]", r"prepare\.min_item_rows cannot be swept"),
        ("space.index.no=[1,2]", r"unknown key 'space\.index\.no'"),
        ("trials=0", "at least 1"),
        ("replicates=99", "at least 100"),
        ("max_seconds=0", "above 0"),
    ],
)
def test_settings_that_no_sweep_can_have_are_one_line(word, message):
    with pytest.raises(ConfigError, match=message):
        load(TuneConfig, [word])


def test_settings_say_how_a_sweep_draws_and_what_it_compares():
    plain = load(TuneConfig)
    assert (plain.drawn_by, plain.metrics, plain.is_whole) == ("tpe", ["recall@20^0.2"], False)
    assert plain.train.launch.workers == 0
    lists = load(TuneConfig, ["space.optim.lr=[0.1,0.2]", "metric=recall@20^0.30"])
    assert (lists.drawn_by, lists.metrics) == ("grid", ["recall@20^0.3"])
    both = load(TuneConfig, ["metrics=[bytes,nll]", "space.index.kind=[flat,ivf]"])
    assert [(o.name, o.direction) for o in both.objectives] == [("bytes", "min"), ("nll", "min")]
    assert (both.is_whole, both.compared_by.name) == (True, "nll")
    assert load(TuneConfig, ["metrics=[bytes]"]).compared_by is None
    assert load(TuneConfig, ["seed=5", "seeds=2"]).all_seeds == [5, 6]
    kept = load(TuneConfig, ["space.index.kind=[flat]", "space.prepare.liked_levels=[[4],[5]]"])
    space = kept.sought({"liked_levels": ["4"]})
    assert space.defaults == {"index.kind": kept.index.kind, "prepare.liked_levels": ["4"]}


class Site:
    """A sweep without a cluster: jobs are done here, and the process may be gone at any moment."""

    def __init__(self, run, *words):
        self.cfg = load(TuneConfig, [f"run={run}", *words])
        self.storage = Storage(str(run))
        self.done = []
        self.plan = SimpleNamespace(objectives=tuple(self.cfg.metrics), watched=self.cfg.metrics[0])

    def __enter__(self):
        space = self.cfg.sought({})
        drawing = Drawing(space, self.cfg.drawn_by, self.cfg.seed, 6, parallel=False)
        self._stack = contextlib.ExitStack()
        opening = opened(self.storage, "sweeps/one", drawing, self.cfg.objectives)
        study, upload = self._stack.enter_context(opening)
        head = {"sweep_id": "one", "name": "first", "started": 1, "profiles_id": "p"}
        head |= {"sampler": self.cfg.drawn_by, "grid": None, "space": self.cfg.space}
        requests = Requests(self.storage, "sweeps/one")
        requests.begin()
        own = (self.storage, "sweeps/one", requests, head, time.monotonic())
        self.sweep = Sweep(self.cfg, self.plan, study, upload, *own)
        return self

    def __exit__(self, *_):
        self._stack.close()

    def run(self, *, dies_at=(), before=lambda job: None):
        """Do the jobs; give up at some, as a process that is killed does."""
        while (job := self.sweep.next()) != DONE:
            if job["name"] in dies_at:
                return
            before(job)
            self.done.append(job["name"])
            values = job["values"]
            if values.get("optim.lr") == 0.5:
                self.sweep.ended(job, None, "the loss is not finite")
            elif "seed" in job:
                self.sweep.ended(job, {"users": ["x", "model"], "worker_seconds": 2.0}, None)
            elif values.get("optim.lr") == 0.4:
                self.sweep.heard(job, 1, 0.1, 0.25)
                self.sweep.ended(job, None, None)
            else:
                self.sweep.ended(job, measured(self.cfg, values), None)
        if self.sweep.state == "running":
            self.sweep.state = "finished"
        self.sweep.write()

    @property
    def record(self):
        return self.storage.read_json("sweeps/one/sweep.json")


def measured(cfg, values):
    lr = values.get("optim.lr", 0.01)
    found = {"recall@20^0.2": 0.5 - (lr - 0.1) ** 2, "nll": 1 + lr}
    objectives = {name: found[name] for name in cfg.metrics}
    return {"metrics": found, "objectives": objectives, "training_seconds": 0.5, "epochs": 3,
            "worker_seconds": 1.0, "peak_bytes": 7, "history": [[1, 0.1]]}  # fmt: skip


@pytest.fixture(autouse=True)
def no_records(monkeypatch):
    """Trials of these sweeps are not known from others, but for those that a test plants."""
    known = {}
    monkeypatch.setattr(
        tune_sweep, "trial_digest", lambda plan, values, seed: json.dumps([values, seed])
    )
    monkeypatch.setattr(tune_sweep, "recorded", lambda storage, name, objectives: known.get(name))
    return known


RATES = "space.optim.lr=[0.1,0.2,0.3,0.4,0.5]"


def test_a_sweep_tries_the_defaults_first_and_says_what_became_of_each(tmp_path):
    with Site(tmp_path, RATES, "finalists=2", "seeds=2") as site:
        site.run()
    rows = site.record["trials"]
    states = ["complete", "complete", "complete", "complete", "pruned", "failed"]
    assert [row["state"] for row in rows] == states
    assert [row["values"].get("optim.lr") for row in rows] == [None, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert (rows[4]["history"], rows[5]["error"]) == ([[1, 0.1]], "the loss is not finite")
    assert site.record["best"] == 1
    assert site.done[6:] == ["0/0", "0/1", "1/0", "1/1", "2/0", "2/1"]  # beside the defaults
    totals = site.record["totals"]
    assert totals["training_seconds"] == pytest.approx(4 * 0.5 + 0.25, abs=0.06)  # until stopped
    assert totals["worker_seconds"] == pytest.approx(4 * 1.0 + 0.25 + 6 * 2.0, abs=0.06)
    assert totals["peak_bytes"] == 7


@pytest.mark.parametrize("words", [(RATES,), ("trials=5",), ("trials=5", "metrics=[nll,bytes]")])
def test_a_sweep_that_is_killed_goes_on_to_the_same_table(tmp_path, words, monkeypatch):
    if len(words) == 2 and "bytes" in words[1]:
        plain = measured
        monkeypatch.setattr(
            "tests.commands.test_tune.measured",
            lambda cfg, values: (
                plain(load(TuneConfig, ["metrics=[nll]"]), values)
                | {"objectives": {"nll": 1 + values.get("optim.lr", 0.01), "bytes": 3.0}}
            ),
            raising=False,
        )
    names = ("number", "values", "state", "objectives", "history", "error")

    def table(site):
        return [{name: row[name] for name in names} for row in site.record["trials"]]

    with Site(tmp_path / "whole", *words, "seeds=1") as whole:
        whole.run()
    done = []
    for dies_at in ("0", "2", "3", "0/0", "never"):
        with Site(tmp_path / "killed", *words, "seeds=1") as site:
            site.run(dies_at=[dies_at])
            done += site.done
    assert table(site) == table(whole)
    assert done == whole.done  # nothing twice
    assert site.record["state"] == "finished"


def test_what_other_sweeps_measured_is_taken_from_them(tmp_path, no_records):
    cfg = load(TuneConfig)
    found = measured(cfg, {"optim.lr": 0.2}) | {"seconds": 1.0, "rows_per_s": 1.0, "build_ids": {}}
    no_records[json.dumps([{"optim.lr": 0.2}, 0])] = Measured(**found)
    with Site(tmp_path, RATES, "finalists=0") as site:
        site.run()
    rows = site.record["trials"]
    assert (rows[2]["state"], rows[2]["objectives"]) == ("reused", found["objectives"])
    assert "2" not in site.done
    assert site.record["totals"]["training_seconds"] < 3.0
    with Site(tmp_path / "anew", RATES, "finalists=0", "force=true") as site:
        site.run()
    assert "2" in site.done


def test_budgets_and_a_dry_run_end_a_sweep(tmp_path):
    with Site(tmp_path / "spent", RATES, "max_worker_seconds=2.5", "finalists=0") as site:
        site.run()
    assert site.done == ["0", "1", "2"]
    with Site(tmp_path / "late", RATES, "max_seconds=1e-9", "finalists=0") as site:
        time.sleep(0.1)
        site.run()
    assert site.done == ["0"]
    with Site(tmp_path / "dry", RATES, "dry_run=true") as site:
        site.run()
    assert (site.done, site.record["state"]) == (["0"], "paused")
    line = tune_best.estimate(site.cfg, site.sweep)
    assert line.startswith("6 trials, the first took 0.0 s")
    with Site(tmp_path / "dry", RATES, "finalists=0") as site:
        site.run()
    assert site.done == ["1", "2", "3", "4", "5"]


def test_values_that_do_not_go_together_fail_a_trial_alone(tmp_path, monkeypatch):
    def digest_of(plan, values, seed):
        if values.get("optim.lr") == 0.2:
            raise ConfigError("optim.lr=0.2 is not accepted beside the others")
        return json.dumps([values, seed])

    monkeypatch.setattr(tune_sweep, "trial_digest", digest_of)
    with Site(tmp_path, RATES, "finalists=0") as site:
        site.run()
    rows = site.record["trials"]
    assert (rows[2]["state"], rows[2]["error"]) == (
        "failed",
        "optim.lr=0.2 is not accepted beside the others",
    )
    assert site.done == ["0", "1", "3", "4", "5"]


def test_trials_that_are_added_while_finalists_run_come_before_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(tune_sweep, "_LOOK_S", 0.0)
    shell = Requests(Storage(str(tmp_path)), "sweeps/one")
    with Site(tmp_path, "trials=1", "finalists=1", "seeds=2") as site:
        site.run(before=lambda job: shell.ask("add", trials=1) if job["name"] == "0/1" else None)
    assert site.done[:5] == ["0", "1", "0/0", "0/1", "2"]
    assert len(site.done) in (7, 9)  # the finalist may be another one by then
    assert site.record["state"] == "finished"


def test_other_shells_pause_stop_and_add(tmp_path, monkeypatch):
    monkeypatch.setattr(tune_sweep, "_LOOK_S", 0.0)
    shell = Requests(Storage(str(tmp_path)), "sweeps/one")

    def ask(what, at, **more):
        return lambda job: shell.ask(what, **more) if job["name"] == at else None

    with Site(tmp_path, "trials=2", "finalists=0") as site:
        site.run(before=ask("pause", "1"))
    assert (site.done, site.record["state"]) == (["0", "1"], "paused")
    with Site(tmp_path, "trials=2", "finalists=0") as site:
        site.run(before=ask("add", "2", trials=2))
    assert (site.done, site.record["state"]) == (["2", "3", "4"], "finished")
    assert site.record["budget"]["trials"] == 4
    with Site(tmp_path, "trials=2", "finalists=0") as site:
        assert site.sweep.n_trials == 5
        shell.ask("stop")
        assert site.sweep.is_halted()
        site.run()
    assert site.record["state"] == "stopped"


def test_the_winner_is_a_config_file_with_its_reasons(tmp_path):
    words = ["train.refit=none", "train.autoencoder.latent=8", "seed=3", "metrics=[nll]"]
    words += ["index.n_lists=64", "train.compressor.keep=8"]
    cfg = load(TuneConfig, [RATES, *words])
    values = {"optim.lr": 1e-05, "compressor.n_active": None, "index.kind": "flat"}
    trial = Trial(4, values, "complete", {}, None)
    storage = Storage(str(tmp_path))
    train = dataclasses.replace(cfg.train, seed=3)
    plan = TrialPlan(str(tmp_path), None, "p", train, ("nll",), index=cfg.index)
    names = tune_best.write_best(plan, storage, "sweeps/s", trial, ["Better: it is."])
    assert names == ["best.yaml", "best.index.yaml"]
    found = load(TrainConfig, yaml_path=str(tmp_path / "sweeps/s/best.yaml"))
    assert (found.optim.lr, found.compressor.n_active, found.seed) == (1e-05, None, 3)
    assert (found.refit, found.autoencoder.latent) == ("none", 8)
    found_index = load(IndexConfig, yaml_path=str(tmp_path / "sweeps/s/best.index.yaml"))
    assert (found_index.kind, found_index.n_lists, found.compressor.keep) == ("flat", 64, 8)
    assert "# Better: it is.\n" in (tmp_path / "sweeps/s/best.yaml").read_text()


def test_the_state_of_a_sweep_is_seen_from_other_shells(tmp_path, caplog):
    caplog.set_level("INFO")
    with pytest.raises(ConfigError, match="holds no sweep yet"):
        tune_verbs.status(load(tune_verbs.SweepConfig, [f"run={tmp_path}"]))
    with pytest.raises(ConfigError, match=r"run=.*/nope does not exist"):
        tune_verbs.status(load(tune_verbs.SweepConfig, [f"run={tmp_path}/nope"]))
    with Site(tmp_path, RATES, "finalists=0") as site:
        site.run(dies_at=["2"])
        asked = load(tune_verbs.SweepConfig, [f"run={tmp_path}", "sweep=first"])
        assert tune_verbs.status(asked).extra["state"] == "interrupted"  # nobody holds it
        with leased(site.storage, "sweeps/one"):
            result = tune_verbs.status(asked)
            assert (result.extra["state"], result.extra["trials"]) == (
                "running",
                {"complete": 2, "running": 1},
            )
            tune_verbs.pause(asked)
            assert site.sweep._requests.asked() == "pause"
            resumed = load(tune_verbs.ResumeConfig, [f"run={tmp_path}"])
            with pytest.raises(ConfigError, match="sweep one runs"):
                tune_verbs.resume(resumed)
    assert "sweep one (first) running, 2 of 6 trials (2 complete)" in caplog.text
    assert 'trial 2 has no epoch yet {"optim.lr": 0.2}' in caplog.text
    assert tune_verbs.stop(asked).extra["state"] == "interrupted"  # nothing to stop
    with pytest.raises(ConfigError, match=r"sweep='x' is not in the run: expected one of one"):
        tune_verbs.status(load(tune_verbs.SweepConfig, [f"run={tmp_path}", "sweep=x"]))
    with pytest.raises(ConfigError, match="trials=0 is not accepted"):
        load(tune_verbs.AddConfig, [f"run={tmp_path}", "trials=0"])


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Return a function from words to what the runner is asked for, on a made-up cluster."""
    workspace = planted_run(tmp_path / "run")
    nodes = {"a": {"CPU": 4.0}, "b": {"CPU": 3.0}}
    monkeypatch.setattr(tune_run, "connected", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(tune_run, "node_resources", lambda: nodes)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever tests ran before

    def ask(*words):
        found = {}

        def run_jobs(director, work, **settings):
            found.update(settings, first=director.next())
            director.ended(found["first"], measured(cfg, {}), None)

        monkeypatch.setattr(tune_run, "run_jobs", run_jobs)
        cfg = load(TuneConfig, [f"run={workspace.run}", "finalists=0", *words])
        result = tune_run.tune(cfg)
        return SimpleNamespace(**found, result=result)

    return ask


def test_settings_reach_the_runner(asked):
    plain = asked()
    assert (plain.concurrent, plain.cpus, plain.direction) == (1, 4.0, "max")
    assert plain.settings["plan"].threads == 4
    assert (plain.first["number"], plain.first["values"]) == (0, {})
    assert (
        plain.result.metrics["val_recall@20^0.2"]["mean"]
        == measured(TuneConfig(), {})["objectives"]["recall@20^0.2"]
    )
    assert Path(plain.result.extra["page"]).is_file()
    [best] = plain.result.extra["best"]
    found = load(TrainConfig, yaml_path=best)
    assert (found.optim, found.select, found.refit) == (
        OptimConfig(batch_size=None),
        "recall@20^0.2",
        "val",
    )
    assert asked("concurrent=3", "seed=1").cpus == 2.0
    assert asked("stop_early=false", "seed=2").direction is None
    longer = asked("space.optim.epochs={low: 5, high: 90}", "seed=7", "trials=1")
    assert longer.epochs == 90
    levels = asked("stop_on=nll", "metrics=[recall@20^0.2,nll]", "train.optim.epochs=7", "seed=3")
    assert (levels.direction, levels.epochs) == ("min", 7)
    assert levels.settings["plan"].watched == "nll"
    apart = asked("train.launch.workers=2", "seed=4")
    assert (apart.cpus, apart.settings["plan"].threads) == (0.0, None)
    with pytest.raises(ConfigError, match=r"concurrent=8 trials need a CPU each; the nodes hold 7"):
        asked("concurrent=8", "seed=5")
    with pytest.raises(ConfigError, match=r"launch\.workers=4 with concurrent=2 needs 8 workers"):
        asked("train.launch.workers=4", "concurrent=2", "seed=6")


def test_a_sweep_goes_on_as_it_was_begun_and_gets_more_trials(asked, monkeypatch):
    first = asked("trials=1", "name=mine", "metrics=[nll]", "space.optim.lr=[0.1,0.2,0.3]")
    run = first.result.extra["sweep"].partition("/sweeps/")[0]
    record = json.loads(Path(first.result.extra["sweep"], "sweep.json").read_text())
    assert (record["name"], record["sampler"], record["grid"]) == ("mine", "grid", 3)
    seen = []
    monkeypatch.setattr(
        tune_verbs, "tune", lambda cfg, sweep_id: seen.append((cfg, sweep_id)) or StageResult()
    )
    tune_verbs.resume(load(tune_verbs.ResumeConfig, [f"run={run}", "concurrent=2"]))
    tune_verbs.add(load(tune_verbs.AddConfig, [f"run={run}", "sweep=mine", "trials=2"]))
    [(resumed, one), (more, other)] = seen
    kept = (Path(run) / f"sweeps/{one}/settings.json").read_text()
    assert not {"run", "cache_dir", "ray"} & set(json.loads(kept))  # a URI may hold keys
    assert one == other == record["sweep_id"]
    assert (resumed.concurrent, more.concurrent) == (2, 1)
    assert resumed.space == {"optim.lr": [0.1, 0.2, 0.3]}
    assert (more.metrics, more.trials, more.name) == (["nll"], 1, "mine")
    assert Requests(Storage(run), f"sweeps/{one}").added() == 2
    asked("trials=1", "name=mine", "metrics=[nll]", "space.optim.lr=[0.1,0.2,0.3]")
    with pytest.raises(ConfigError, match="tries all 3 settings of its grid"):
        tune_verbs.add(load(tune_verbs.AddConfig, [f"run={run}"]))
    page = tune_verbs.report(load(tune_verbs.SweepConfig, [f"run={run}"])).extra["page"]
    assert "mine" in Path(page).read_text()


def test_trials_are_runs_of_mlflow_below_the_sweep(asked, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = asked("tracking=mlflow", "metrics=[nll]")
    run = found.result.extra["sweep"].partition("/sweeps/")[0]
    client = MlflowClient(tracking_uri=f"sqlite:///{run}/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name == "run"]
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"tune", "trial 0"}
    trial = runs["trial 0"]
    assert trial.data.tags["mlflow.parentRunId"] == runs["tune"].info.run_id
    assert (trial.data.tags["state"], trial.data.params["optim.epochs"]) == ("complete", "40")
    assert trial.data.metrics["val_nll"] == pytest.approx(1.01)
    [artifact] = client.list_artifacts(runs["tune"].info.run_id)
    assert artifact.path == "report.html"


def test_a_sweep_is_judged_once_by_its_largest_models_at_a_time(asked, monkeypatch):
    judged = []

    def refuse(cfg, facts, *, concurrent):
        judged.append((cfg.autoencoder.latent, cfg.optim.batch_size, concurrent))

    monkeypatch.setattr(tune_run, "refuse_oversized", refuse)
    asked("space.autoencoder.latent=[64, 2048]", "concurrent=2", "trials=1")
    assert judged == [(2048, 512, 2)]
