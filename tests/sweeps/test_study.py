import itertools

import optuna
import pytest

from raysys.errors import BuildError
from raysys.store.storage import Storage
from raysys.sweeps.space import Space
from raysys.sweeps.study import Drawing, Objective, opened

DEFAULTS = {"lr": 0.01, "n": 2, "kind": "a", "layers": [1, 2], "depth": 1}
DOMAINS = {
    "lr": {"low": 0.001, "high": 0.1, "log": True},
    "n": {"low": 1, "high": 5, "log": False},
    "kind": ["a", "b"],
    "layers": [[1, 2], [3]],
    "depth": {"values": [1, 2, 3], "if": {"kind": ["b"]}},
}
QUALITY, SIZE = Objective("quality", "max"), Objective("size", "min")
N_TRIALS = 16


def drawing(sampler, domains=DOMAINS):
    space = Space.of(domains, DEFAULTS.__getitem__)
    return Drawing(space, sampler, seed=3, n_trials=N_TRIALS, parallel=False)


def measured(values):
    """Return what a made-up training comes to: it likes lr=0.03, and n and depth cost."""
    found = DEFAULTS | values
    quality = found["n"] * 0.1 - (found["lr"] - 0.03) ** 2 * 1000
    return {"objectives": {"quality": quality, "size": found["n"] + found["depth"]}}


def swept(storage, sampler, objectives, *, killed=()):
    """Run a sweep whose process is gone at some trials, before or after they were drawn."""
    deaths = list(killed)
    while True:
        with opened(storage, "sweeps/one", drawing(sampler), objectives) as (study, _):
            todo = study.unfinished()
            while todo or len(study.trials()) < N_TRIALS:
                number = len(study.trials())
                trial = todo.pop() if todo else study.ask(number, None if number else {})
                if trial.number in deaths:
                    deaths.remove(trial.number)
                    break
                if trial.number == 7:
                    study.fail(7, "no memory", {"seconds": 1.0})
                elif trial.number == 9:
                    study.prune(9, {"history": [[1, 0.1], [2, 0.2]], "objectives": {}})
                else:
                    study.tell(trial.number, measured(trial.values))
            else:
                return study.trials()


@pytest.mark.parametrize(
    ("sampler", "objectives"),
    [
        ("tpe", [QUALITY]),
        ("random", [QUALITY]),
        ("nsga2", [QUALITY, SIZE]),
        ("tpe", [QUALITY, SIZE]),
    ],
)
def test_a_study_whose_process_is_gone_draws_what_it_would_have_drawn(
    tmp_path, sampler, objectives
):
    whole = swept(Storage(str(tmp_path / "whole")), sampler, objectives)
    parts = swept(Storage(str(tmp_path / "parts")), sampler, objectives, killed=[0, 3, 11, 12])
    assert parts == whole
    assert [trial.number for trial in whole] == [*range(N_TRIALS)]
    assert (whole[0].values, whole[7].error, whole[9].state) == ({}, "no memory", "pruned")
    assert len({str(trial.values) for trial in whole}) > N_TRIALS / 2
    assert all(("depth" in t.values) == (t.values["kind"] == "b") for t in whole[1:])


def test_a_trial_that_was_half_drawn_is_drawn_to_its_end(tmp_path, monkeypatch):
    def first_values(run, *, dies):
        storage = Storage(str(tmp_path / run))
        with opened(storage, "sweeps/one", drawing("random"), [QUALITY]) as (study, _):
            study.ask(0, {})
            study.tell(0, measured({}))
            if dies:
                draws = itertools.count()

                def fail(name, *args, **settings):
                    if next(draws) == 2:
                        raise KeyboardInterrupt
                    return whole(name, *args, **settings)

                whole = optuna.Trial.set_user_attr
                monkeypatch.setattr(optuna.Trial, "set_user_attr", fail)
                suggest = optuna.Trial.suggest_categorical
                monkeypatch.setattr(optuna.Trial, "suggest_categorical", _dies(suggest))
                with pytest.raises(KeyboardInterrupt):
                    study.ask(1)
                monkeypatch.undo()
            else:
                return study.ask(1).values
        with opened(storage, "sweeps/one", drawing("random"), [QUALITY]) as (study, _):
            [trial] = study.unfinished()
            assert trial.number == 1
            return trial.values

    assert first_values("dead", dies=True) == first_values("alive", dies=False)


def _dies(suggest):
    """Return what draws one value and then ends the process."""
    drawn = []

    def draw(trial, name, choices):
        if drawn:
            raise KeyboardInterrupt
        drawn.append(name)
        return suggest(trial, name, choices)

    return draw


def test_given_settings_are_kept_and_the_defaults_need_not_lie_in_the_space(tmp_path):
    storage = Storage(str(tmp_path))
    domains = {"lr": [0.1, 0.2], "layers": [[3], [4]]}
    with opened(storage, "sweeps/one", drawing("grid", domains), [QUALITY]) as (study, _):
        assert study.ask(0, {}).values == {}
        study.tell(0, measured({}))
        wanted = {"lr": 0.2, "layers": [4]}
        assert study.ask(1, wanted).values == wanted
        study.tell(1, measured(wanted), reused=True)
        assert [(t.state, t.is_measured) for t in study.trials()] == [
            ("complete", True),
            ("reused", True),
        ]


def test_optuna_reads_the_study(tmp_path):
    storage = Storage(str(tmp_path))
    trials = swept(storage, "tpe", [QUALITY])
    journal = optuna.storages.journal.JournalFileBackend(str(tmp_path / "sweeps/one/study.log"))
    found = optuna.load_study(study_name="one", storage=optuna.storages.JournalStorage(journal))
    best = max(
        (t for t in trials if t.is_measured), key=lambda t: t.measured["objectives"]["quality"]
    )
    assert found.best_trial.number == best.number
    states = [trial.state.name for trial in found.trials]
    assert (states[7], states[9]) == ("FAIL", "PRUNED")


def test_the_last_line_of_a_killed_process_and_its_lock_are_no_hindrance(tmp_path):
    storage = Storage(str(tmp_path))
    before = swept(storage, "random", [QUALITY])
    journal = tmp_path / "sweeps/one/study.log"
    with journal.open("a") as stream:
        stream.write('{"op_code": 8, "half')
    (tmp_path / "sweeps/one/study.log.lock").symlink_to(journal)
    with opened(storage, "sweeps/one", drawing("random"), [QUALITY]) as (study, _):
        assert study.trials() == before
        study.ask(N_TRIALS)
    journal.write_text('not json\n{"op_code": 0}\n')
    with (
        pytest.raises(BuildError, match=r"study\.log is damaged"),
        opened(storage, "sweeps/one", drawing("random"), [QUALITY]),
    ):
        pass


def test_importance_finds_the_key_that_matters(tmp_path):
    storage = Storage(str(tmp_path))
    domains = {"lr": DOMAINS["lr"], "layers": [[1, 2], [3]]}
    with opened(storage, "sweeps/one", drawing("random", domains), [QUALITY]) as (study, _):
        assert study.importance() == {}
        for number in range(20):
            trial = study.ask(number)
            study.tell(number, measured(trial.values))
        shares = study.importance()
    assert shares["lr"] > 0.8 > shares["layers"]


def test_time_is_added_up_over_processes(tmp_path):
    storage = Storage(str(tmp_path))
    for _ in range(2):
        with opened(storage, "sweeps/one", drawing("random"), [QUALITY]) as (study, _):
            study.spend("trials", 1.5)
            study.note_finalist(3, 1, {"users": "x"})
    with opened(storage, "sweeps/one", drawing("random"), [QUALITY]) as (study, _):
        assert (study.seconds("trials"), study.seconds("finalists")) == (3.0, 0.0)
        assert study.finalist(3, 1) == {"users": "x"}
        assert study.finalist(3, 2) is None


def test_a_study_lies_on_an_object_store_too(s3_bucket, tmp_path):
    there, here = Storage(f"{s3_bucket}/study"), Storage(str(tmp_path))
    assert swept(there, "tpe", [QUALITY], killed=[4]) == swept(here, "tpe", [QUALITY])
