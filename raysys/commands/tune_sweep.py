"""The sweep itself: what is tried next, what came of it, and the record in the run.

The study knows all that a sweep needs to go on; `sweep.json` says it to people and to other
programs. It is written whenever a trial ends, and every few seconds while trials run.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from raysys import progress
from raysys.cluster.sweep_runner import DONE, Job
from raysys.cluster.train_workers import forget
from raysys.commands.trial import TrialPlan, training_name
from raysys.commands.trial_records import recorded, trial_digest, trial_folder
from raysys.commands.tune import TuneConfig
from raysys.commands.tune_tracking import track
from raysys.errors import ConfigError, CorruptBuildError, told
from raysys.store.storage import Storage
from raysys.sweeps import outcome
from raysys.sweeps.requests import PAUSE, STOP, Requests
from raysys.sweeps.space import Values
from raysys.sweeps.study import GRID, RANDOM, REUSED, Study, Trial, Upload

log = logging.getLogger(__name__)

SWEEPS, RECORD = "sweeps", "sweep.json"
NOW_RUNNING, PAUSED, STOPPED = "running", "paused", "stopped"
FINISHED, INTERRUPTED = "finished", "interrupted"
_LOOK_S = 1.0  # between two looks for requests
_WRITE_S = 5.0  # between two records while trials run
_SPEND_S = 0.05  # of time that is worth a line of the journal
TRIALS, FINALISTS = "trials", "finalists"  # phases


@dataclasses.dataclass
class _Running:
    """A job that runs.

    Attributes:
        job: it.
        started: time.monotonic().
        history: {epoch: value}; a trial that is repeated says its epochs again.
        trained_s: how long it had trained by the last of them.
    """

    job: Job
    started: float
    history: dict[int, float] = dataclasses.field(default_factory=dict)
    trained_s: float = 0.0


class Sweep:
    """Directs a sweep; see `cluster.sweep_runner.Director`.

    Args:
        cfg: of the sweep.
        plan: of its trials.
        study: of the sweep.
        upload: brings its journal into the run.
        storage: of the run.
        folder: of the sweep.
        requests: of other shells.
        head: what the record says beside what was found.
        started: time.monotonic() when the command began.
    """

    def __init__(
        self,
        cfg: TuneConfig,
        plan: TrialPlan,
        study: Study,
        upload: Upload,
        storage: Storage,
        folder: str,
        requests: Requests,
        head: Mapping[str, Any],
        started: float,
    ) -> None:
        self.study = study
        self.sweep_id = folder.rpartition("/")[2]
        self.state = NOW_RUNNING
        self._cfg = cfg
        self._plan = plan
        self._upload = upload
        self._storage = storage
        self._folder = folder
        self._head = dict(head)
        self._requests = requests
        self._grid = list(study.space.grid()) if cfg.drawn_by == GRID else None
        self._todo = []
        for trial in study.unfinished():
            found = self._known(trial)  # its process may have ended just after it was measured
            if found is None:
                self._todo.append(trial)
            else:
                study.tell(trial.number, found)
        self._running: dict[str, _Running] = {}
        self._finalists: Iterator[Job] | None = None
        self._looked = self._written = -math.inf
        self._clock = started
        done = [trial for trial in study.trials() if trial not in self._todo]
        self._work = progress.Stage("tune", "trials", self.n_trials, progress.STEPS).begin()
        self._work.skip(len(done))

    @property
    def n_trials(self) -> int:
        """How many trials the sweep is to have, the defaults included."""
        wanted = self._cfg.expected(self.study.space) + self._requests.added()
        return 1 + (wanted if self._grid is None else min(wanted, len(self._grid)))

    def histories(self) -> list[list[tuple[int, float]]]:
        """Return (epoch, value) of the trials that ran and ended, for the scheduler."""
        ended = [t for t in self.study.trials() if t.measured and t.state != REUSED]
        return [[tuple(pair) for pair in t.measured.get("history") or ()] for t in ended]

    def next(self) -> Job | None:
        """Return the next trial or finalist, as `Director` says."""
        self._look()
        if self.state in (PAUSED, STOPPED):
            return DONE
        job = self._next_trial()
        if job is not None:
            self._finalists = None  # those of before may be others now
            return self._begun(job)
        if self._finalists is None:
            if self._running:
                return None
            if self._cfg.dry_run:
                self.state = PAUSED
                return DONE
            self._spend()
            self._finalists = self._rounds()
        job = next(self._finalists, None)
        if job is not None:
            return self._begun(job)
        return None if self._running else DONE

    def _next_trial(self) -> Job | None:
        if self._todo:
            return _job(self._todo.pop(0))
        while self._may_begin():
            trial = self._asked()
            try:
                found = self._known(trial)
            except ConfigError as error:  # values that do not go together
                self.study.fail(trial.number, told(error), {})
                log.error("trial failed id=%d: %s", trial.number, told(error))
                self._work.add()
                continue
            if found is None:
                return _job(trial)
            self.study.tell(trial.number, found, reused=True)
            self._work.add()
            self._work.say(f"trial id={trial.number} measured before {self._shown(found)}")
        return None

    def _asked(self) -> Trial:
        number = len(self.study.trials())
        given = None if self._grid is None or number == 0 else self._grid[number - 1]
        return self.study.ask(number, {} if number == 0 else given)

    def _may_begin(self) -> bool:
        trials = self.study.trials()
        if not trials:
            return True
        if self._cfg.dry_run or len(trials) >= self.n_trials:
            return False
        own = [trial.measured for trial in trials if trial.state != REUSED]
        spent = sum(measured.get("worker_seconds") or 0.0 for measured in own)
        self._spend()
        limits = (
            (self._cfg.max_seconds, self.study.seconds(TRIALS)),
            (self._cfg.max_worker_seconds, spent),
        )
        return all(limit is None or used < limit for limit, used in limits)

    def _known(self, trial: Trial) -> dict[str, Any] | None:
        """Return what an earlier sweep measured of these settings, all objectives of it."""
        if self._cfg.force:
            return None
        name = trial_digest(self._plan, trial.values, seed=self._cfg.seed)
        found = recorded(self._storage, name, objectives=self._plan.objectives)
        return None if found is None else dataclasses.asdict(found) | {"digest": name}

    def _rounds(self) -> Iterator[Job]:
        """Yield the finalists and the defaults under every seed that is not there yet."""
        for trial, seed, note in self._due():
            if note is None:
                yield _job(trial) | {"seed": seed, "name": f"{trial.number}/{seed}"}

    def compared(self) -> list[Trial]:
        """Return the defaults and the finalists; none where there is nothing to compare."""
        if self._cfg.compared_by is None:
            return []
        trials = self.study.trials()
        best = outcome.finalists(trials, self.study.objectives, self._cfg.finalists)
        return [trials[0], *best] if best and trials[0].is_measured else []

    def _due(self) -> list[tuple[Trial, int, Mapping[str, Any] | None]]:
        """Return every finalist with every seed, and what it came to; None: nothing yet."""
        return [
            (trial, seed, self.study.finalist(trial.number, seed))
            for trial, seed in itertools.product(self.compared(), self._cfg.all_seeds)
        ]

    def _n_finalists(self) -> tuple[int, int]:
        """Return how many trainings of finalists are done, and due."""
        notes = [note for _, _, note in self._due()]
        return sum(note is not None for note in notes), len(notes)

    def _begun(self, job: Job) -> Job:
        self._running[job["name"]] = _Running(job, time.monotonic())
        what = "trial" if "seed" not in job else f"finalist seed={job['seed']}"
        self._work.say(f"{what} started id={job['number']} values={json.dumps(job['values'])}")
        self._upload()
        self.write()
        return job

    def heard(self, job: Job, epoch: int, value: float, seconds: float) -> None:
        """Take the value of an epoch; one that is heard again says nothing new."""
        running = self._running[job["name"]]
        if running.history.get(epoch) == value:
            return
        running.history[epoch] = value
        running.trained_s = seconds
        self._work.say(
            f"trial id={job['number']} epoch={epoch} {self._plan.watched}={value:.5f}",
            note=self._note(),
        )

    def ended(self, job: Job, result: Mapping[str, Any] | None, error: str | None) -> None:
        """Take what a job came to."""
        running = self._running.pop(job["name"])
        seconds = round(time.monotonic() - running.started, 3)
        number = job["number"]
        if "seed" in job:
            if error is not None:
                log.error("finalist failed id=%d seed=%d: %s", number, job["seed"], error)
            self.study.note_finalist(number, job["seed"], result or {"error": error})
            done, due = self._n_finalists()
            self._work.say(f"finalist ended id={number} seed={job['seed']} done={done}/{due}")
        elif error is not None:
            self.study.fail(number, error, self._spent(running))
            log.error("trial failed id=%d: %s", number, error)
        elif result is None:
            self.study.prune(number, self._spent(running))
            self._work.say(f"trial stopped early id={number} epoch={max(running.history)}")
        else:
            self.study.tell(number, {**result, "seconds": seconds})
            self._work.say(f"trial ended id={number} {self._shown(result)}", note=self._note())
        if "seed" not in job:
            if result is None:
                self._forget(job["values"])
            self._work.add()
            track(self._cfg, self._plan, self.study.trials()[number])
        self._spend()
        self._upload()
        self.write()

    def _forget(self, values: Values) -> None:
        """Delete the states that workers of a trial left that did not come to its end."""
        if self._cfg.train.launch.most:
            name = trial_digest(self._plan, values, seed=self._cfg.seed)
            forget(self._storage, training_name(trial_folder(name)))

    def _spent(self, running: _Running) -> dict[str, Any]:
        """Return what is known of a trial that did not come to its end."""
        workers = max(1, self._cfg.train.launch.most)
        return {
            "history": sorted(running.history.items()),
            "seconds": round(time.monotonic() - running.started, 3),
            "training_seconds": round(running.trained_s, 3),
            "worker_seconds": round(workers * running.trained_s, 3),
        }

    def is_halted(self) -> bool:
        """Tell whether a stop is asked for; asked again and again while trials run."""
        self._look()
        if time.monotonic() - self._written > _WRITE_S and self.state == NOW_RUNNING:
            self._spend()
            self.write()
        return self.state == STOPPED

    def close(self, *, finished: bool) -> None:
        """End the line of progress."""
        self._spend()
        self._work.end(finished=finished)

    def write(self, **more: Any) -> None:
        """Write the record."""
        self._written = time.monotonic()
        running = {
            each.job["number"]: {
                "history": sorted(each.history.items()),
                "seconds": round(time.monotonic() - each.started, 1),
            }
            for each in self._running.values()
            if "seed" not in each.job
        }
        record = self._head | {"state": self.state, "updated": int(time.time())}
        record |= outcome.record(self.study, running)
        record["budget"] = {
            "trials": self.n_trials - 1,
            "seconds": self._cfg.max_seconds,
            "worker_seconds": self._cfg.max_worker_seconds,
        }
        record["totals"] = self._totals(record["trials"])
        if self._finalists is not None:
            done, due = self._n_finalists()
            record["rounds"] = {"done": done, "due": due}
        record |= {"finalists": None} | more
        if self.state != NOW_RUNNING and len(record["objectives"]) == 2:
            record["hypervolume"] = self._beside_chance(record)
        self._storage.write_atomic(f"{self._folder}/{RECORD}", json.dumps(record, indent=1) + "\n")

    def counts(self) -> dict[str, int]:
        """Return {state: trials}."""
        return outcome.counts(trial.state for trial in self.study.trials())

    def _beside_chance(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the areas of this sweep and of a random one of the same question in the run."""
        alike = ("profiles_id", "space", "objectives")
        names = [n for n in self._storage.files(SWEEPS) if n.endswith(f"/{RECORD}")]
        for name in sorted(names):
            try:
                other = self._storage.read_json(f"{SWEEPS}/{name}") or {}
            except CorruptBuildError:
                continue
            same = all(other.get(key) == json.loads(json.dumps(record[key])) for key in alike)
            if same and other["sampler"] == RANDOM and other["sweep_id"] != record["sweep_id"]:
                return outcome.beside(record, other)
        found: dict[str, Any] | None = record["hypervolume"]
        return found

    def _totals(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what the sweep took; the overhead is the trials' time but for training."""
        notes = [note or {} for _, _, note in self._due()]
        own = [row for row in rows if row["state"] != REUSED]
        training = _total(own, "training_seconds")
        trials, finalists = self.study.seconds(TRIALS), self.study.seconds(FINALISTS)
        held = trials * self._cfg.concurrent
        return {
            "seconds": round(trials + finalists, 1),
            "trial_seconds": round(trials, 1),
            "finalist_seconds": round(finalists, 1),
            "training_seconds": round(training, 1),
            "worker_seconds": round(_total([*own, *notes], "worker_seconds"), 1),
            "overhead_share": round(1 - training / held, 4) if held else None,
            "peak_bytes": max((row.get("peak_bytes") or 0 for row in [*own, *notes]), default=0),
        }

    def _look(self) -> None:
        """See what other shells ask for."""
        if time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        asked = self._requests.asked()
        new = {PAUSE: PAUSED, STOP: STOPPED}.get(asked or "", self.state)
        if new != self.state:
            log.info("sweep %s asked for", asked)
            self.state = new
        self._work.total = self.n_trials

    def _spend(self) -> None:
        now = time.monotonic()
        if now - self._clock > _SPEND_S:
            phase = TRIALS if self._finalists is None else FINALISTS
            self.study.spend(phase, now - self._clock)
            self._clock = now

    def _note(self) -> str:
        leading = self.study.objectives[0]
        best = outcome.ranked(self.study.trials(), leading)
        if not best:
            return ""
        return f"best {leading.name} {best[0].measured['objectives'][leading.name]:.5g}"

    def _shown(self, found: Mapping[str, Any]) -> str:
        return " ".join(f"{name}={value:.5g}" for name, value in found["objectives"].items())


def _job(trial: Trial) -> Job:
    job = {"name": str(trial.number), "number": trial.number, "values": trial.values}
    return job | {"whole": trial.number == 0}  # all others are compared with the defaults


def _total(rows: list[Any], name: str) -> float:
    return float(sum(row.get(name) or 0.0 for row in rows))
