"""The study of a sweep: an Optuna study in the run, which is all that a sweep knows.

    <folder>/study.log    its journal; `optuna-dashboard` opens it

One process writes it, under the lease of the sweep. Every draw has a seed of its own, of the
sweep's seed, the trial's number and the key, so that a sweep that was interrupted draws what it
would have drawn. Where the run lies on an object store the journal is a local file that is uploaded
whenever a trial begins or ends.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from raysys.errors import BuildError
from raysys.store.storage import Storage
from raysys.store.temporary import temporary
from raysys.sweeps.space import Space, Values

JOURNAL = "study.log"
GRID, RANDOM, TPE, NSGA2 = "grid", "random", "tpe", "nsga2"
SAMPLERS = (GRID, RANDOM, TPE, NSGA2)
RUNNING, COMPLETE, PRUNED, FAILED, REUSED = "running", "complete", "pruned", "failed", "reused"

_VALUES, _MEASURED, _STATE, _ERROR = "values", "measured", "state", "error"
_SECONDS, _FINALIST = "seconds", "finalist"
_STARTUP = 10  # random trials before TPE looks at what was found
_DIRECTIONS = {"max": "maximize", "min": "minimize"}
_POPULATION = (8, 50)  # of NSGA-II, at least and at most


@dataclasses.dataclass(frozen=True)
class Objective:
    """What trials are judged by.

    Attributes:
        name: of a metric.
        direction: max or min.
    """

    name: str
    direction: Literal["max", "min"]

    @property
    def sign(self) -> int:
        """What makes more be better."""
        return 1 if self.direction == "max" else -1


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial as the study knows it.

    Attributes:
        number: 0 is the defaults.
        values: by dotted key, those of the space alone.
        state: running, complete, pruned, failed or reused.
        measured: what it came to, as JSON values; {} while it runs.
        error: why it failed, in one line.
    """

    number: int
    values: Values
    state: str
    measured: Mapping[str, Any]
    error: str | None

    @property
    def is_measured(self) -> bool:
        """Whether it has all its objectives."""
        return self.state in (COMPLETE, REUSED)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How trials are drawn.

    Attributes:
        space: what from.
        sampler: one of `SAMPLERS`.
        seed: of all draws.
        n_trials: expected when the sweep begins, which a sampler plans with.
        parallel: whether several trials run at a time.
    """

    space: Space
    sampler: str
    seed: int
    n_trials: int
    parallel: bool


class Study:
    """The study of a sweep; made by `opened`.

    Args:
        study: of Optuna.
        drawing: how trials are drawn.
    """

    def __init__(self, study: optuna.Study, drawing: Drawing) -> None:
        self.space = drawing.space
        self._study = study
        self._drawing = drawing
        self._asked: dict[int, optuna.Trial] = {}

    def trials(self) -> list[Trial]:
        """Return all trials that have values, by number."""
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            attrs = trial.user_attrs
            if _VALUES in attrs:
                state = attrs.get(_STATE, RUNNING)
                measured, error = attrs.get(_MEASURED, {}), attrs.get(_ERROR)
                found.append(Trial(trial.number, attrs[_VALUES], state, measured, error))
        return found

    def unfinished(self) -> list[Trial]:
        """Return the trials that began under an earlier process and did not end.

        A trial whose process ended while it was drawn is drawn to its end.
        """
        found = []
        for frozen in self._study.get_trials(states=(TrialState.RUNNING,), deepcopy=False):
            trial = optuna.Trial(self._study, frozen._trial_id)
            found.append(self._drawn(trial))
        return found

    def ask(self, number: int, values: Values | None = None) -> Trial:
        """Begin the next trial.

        Args:
            number: that it gets: how many there are.
            values: given ones; None: draw them. The defaults, {}, need not lie in the space.
        """
        study = self._study
        waiting = study.get_trials(states=(TrialState.WAITING,), deepcopy=False)
        if values is not None and not waiting:
            inside = values or self.space.default_values()
            marks = {"given": values, "inside": inside is not None}
            study.enqueue_trial(self.space.encoded(inside or {}), user_attrs=marks)
        self._seeded(number, "")
        trial = study.ask()
        if trial.number != number:
            raise BuildError(f"another process asks the study of this sweep: trial {trial.number}")
        return self._drawn(trial)

    def tell(self, number: int, measured: Mapping[str, Any], *, reused: bool = False) -> None:
        """End a trial with its measurements; `measured["objectives"]` holds all objectives."""
        names = [objective.name for objective in self.objectives]
        values = [float(measured["objectives"][name]) for name in names]
        trial = self._trial(number)
        trial.set_user_attr(_MEASURED, _plain(measured))
        trial.set_user_attr(_STATE, REUSED if reused else COMPLETE)
        self._end(trial, TrialState.COMPLETE, values)

    def prune(self, number: int, measured: Mapping[str, Any]) -> None:
        """End a trial that was stopped as it fell behind."""
        trial = self._trial(number)
        trial.set_user_attr(_MEASURED, _plain(measured))
        trial.set_user_attr(_STATE, PRUNED)
        one = len(self.objectives) == 1
        if one:
            for epoch, value in measured.get("history", ()):
                trial.report(value, int(epoch))
        self._end(trial, TrialState.PRUNED if one else TrialState.FAIL)

    def fail(self, number: int, error: str, measured: Mapping[str, Any]) -> None:
        """End a trial that could not be measured, with what it took and said until then."""
        trial = self._trial(number)
        trial.set_user_attr(_MEASURED, _plain(measured))
        trial.set_user_attr(_ERROR, error)
        trial.set_user_attr(_STATE, FAILED)
        self._end(trial, TrialState.FAIL)

    @property
    def objectives(self) -> list[Objective]:
        """What trials are judged by; the first leads."""
        return [Objective(**entry) for entry in self._study.user_attrs["objectives"]]

    def importance(self) -> dict[str, float]:
        """Return {key: share of the variation of the leading objective}; {} of few trials.

        Source: Hutter et al., "An Efficient Approach for Assessing Hyperparameter Importance",
        2014 (fANOVA needs scikit-learn; PED-ANOVA, Watanabe et al., 2023, does not).
        """
        done = [trial for trial in self.trials() if trial.is_measured and trial.values]
        if len(done) < _STARTUP or len(self.space.domains) < 2:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = optuna.importance.get_param_importances(
                    self._study,
                    evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                    target=(lambda trial: trial.values[0]) if len(self.objectives) > 1 else None,
                    params=_shared(done),
                )
            except (ValueError, RuntimeError):  # all trials came to the same
                return {}
        return {key: round(float(share), 4) for key, share in found.items()}

    def seconds(self, phase: str) -> float:
        """Return how long a phase of the sweep took so far, over all its processes."""
        return float(self._study.user_attrs.get(f"{_SECONDS}-{phase}", 0.0))

    def spend(self, phase: str, seconds: float) -> None:
        """Add to `seconds`."""
        total = round(self.seconds(phase) + seconds, 3)
        self._study.set_user_attr(f"{_SECONDS}-{phase}", total)

    def finalist(self, number: int, seed: int) -> Mapping[str, Any] | None:
        """Return what was noted of a finalist under a seed."""
        found: Mapping[str, Any] | None = self._study.user_attrs.get(f"{_FINALIST}-{number}-{seed}")
        return found

    def note_finalist(self, number: int, seed: int, found: Mapping[str, Any]) -> None:
        """Note what a finalist came to under a seed."""
        self._study.set_user_attr(f"{_FINALIST}-{number}-{seed}", _plain(found))

    def _drawn(self, trial: optuna.Trial) -> Trial:
        """Draw what a trial lacks."""
        number = trial.number
        self._asked[number] = trial
        attrs = trial.user_attrs
        if _VALUES not in attrs:
            given = attrs.get("given")
            drawn: Values = {}
            if attrs.get("inside", True):
                drawn = self.space.suggest(trial, lambda key: self._seeded(number, key))
            values = drawn if given is None else given
            trial.set_user_attr(_VALUES, _plain(values))
        return Trial(number, trial.user_attrs[_VALUES], RUNNING, {}, None)

    def _trial(self, number: int) -> optuna.Trial:
        return self._asked[number]

    def _end(
        self, trial: optuna.Trial, state: TrialState, values: Sequence[float] | None = None
    ) -> None:
        self._study.tell(trial, values, state=state)
        del self._asked[trial.number]

    def _seeded(self, number: int, key: str) -> None:
        """Give the study a sampler that draws the same for this trial and key whenever asked."""
        text = json.dumps([self._drawing.seed, number, key]).encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:4])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = self._made(seed)

    def _made(self, seed: int) -> BaseSampler:
        if self._drawing.sampler == TPE:
            return TPESampler(
                seed=seed,
                n_startup_trials=_STARTUP,
                multivariate=True,
                group=True,
                constant_liar=self._drawing.parallel,
            )
        if self._drawing.sampler == NSGA2:
            least, most = _POPULATION
            size = min(most, max(least, self._study.user_attrs["n_trials"] // 5))
            return NSGAIISampler(seed=seed, population_size=size)
        return RandomSampler(seed=seed)


@contextmanager
def opened(
    storage: Storage,
    folder: str,
    drawing: Drawing,
    objectives: Sequence[Objective],
    *,
    confirm: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Study, Upload]]:
    """Open the study of a sweep, or make it; the caller holds the lease of the sweep.

    Args:
        storage: of the run.
        folder: of the sweep.
        drawing: how trials are drawn.
        objectives: what trials are judged by; of a new study.
        confirm: raises BuildError where another process writes the study by now; nothing is
            uploaded then.

    Raises:
        BuildError: the journal is damaged, or cannot be written.
    """
    logging.getLogger("optuna").setLevel(logging.ERROR)
    with temporary("study") as scratch:
        upload = Upload(storage, f"{folder}/{JOURNAL}", scratch, confirm)
        _mend(upload.path)
        try:
            journal = JournalStorage(JournalFileBackend(str(upload.path)))
            study = optuna.create_study(
                study_name=folder.rpartition("/")[2],
                storage=journal,
                directions=[_DIRECTIONS[objective.direction] for objective in objectives],
                load_if_exists=True,
            )
            if "objectives" not in study.user_attrs:
                study.set_user_attr("n_trials", drawing.n_trials)
                study.set_user_attr("objectives", [dataclasses.asdict(o) for o in objectives])
        except (ValueError, KeyError) as error:
            raise BuildError(f"{storage.url(f'{folder}/{JOURNAL}')} is damaged: {error}") from error
        try:
            yield Study(study, drawing), upload
        finally:
            upload()


class Upload:
    """Where the journal is written, and what brings it into the run.

    Attributes:
        path: of the journal, on this host.
    """

    def __init__(
        self, storage: Storage, name: str, scratch: Path, confirm: Callable[[], None]
    ) -> None:
        self._storage = storage
        self._confirm = confirm
        self._name = name
        self._size = 0
        self.path = Path(storage.root) / name if storage.is_local else scratch / JOURNAL
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not storage.is_local and (content := storage.read(name)) is not None:
            self.path.write_bytes(content)
            self._size = len(content)

    def __call__(self) -> None:
        """Upload what was written since the last time.

        Raises:
            BuildError: another process took the study over.
        """
        self._confirm()
        if self._storage.is_local or not self.path.exists():
            return
        content = self.path.read_bytes()
        if len(content) > self._size:
            self._storage.write_atomic(self._name, content)
            self._size = len(content)


def _mend(path: Path) -> None:
    """Remove what a process that was killed left of its last line, and its lock."""
    Path(f"{path}.lock").unlink(missing_ok=True)
    if not path.exists():
        return
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        whole = content[: content.rfind(b"\n") + 1]
        with path.open("r+b") as stream:
            stream.truncate(len(whole))


def _shared(trials: Sequence[Trial]) -> list[str]:
    """Return the keys that all trials set."""
    keys = set.intersection(*(set(trial.values) for trial in trials))
    return sorted(keys)


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return json.loads(json.dumps(value))
