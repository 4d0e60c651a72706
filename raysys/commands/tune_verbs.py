"""What is asked of a sweep from outside: how it stands, more trials, a pause, its end, its page.

raysys tune status run=R [sweep=ID]      of a sweep that runs here, elsewhere or no more
raysys tune pause run=R                  begin no further trial; those that run are finished
raysys tune stop run=R                   end what runs; the best so far is the winner
raysys tune resume run=R                 go on where it was left, with the same settings
raysys tune add run=R trials=10          more trials, for one that runs or by going on
raysys tune report run=R                 the page again
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from raysys.commands.tune import TuneConfig
from raysys.commands.tune_run import SETTINGS, tune
from raysys.commands.tune_sweep import FINISHED, INTERRUPTED, NOW_RUNNING, RECORD, SWEEPS
from raysys.config import JobConfig, load, local, require, require_run
from raysys.errors import BuildError, ConfigError, CorruptBuildError, without_keys
from raysys.evaluation.evaluator import point
from raysys.reports.html.sweep import publish
from raysys.reports.tables import aligned
from raysys.store.builds import StageResult, Workspace
from raysys.store.leases import holder
from raysys.store.storage import Storage, join
from raysys.sweeps.outcome import counts
from raysys.sweeps.requests import ADD, PAUSE, STOP, Requests

log = logging.getLogger(__name__)

_SHOWN = 10  # trials


@dataclasses.dataclass
class SweepConfig(JobConfig):
    """Which sweep.

    Attributes:
        sweep: its id or name; null: the one of the run that was begun last.
    """

    sweep: str | None = local(None)


@dataclasses.dataclass
class ResumeConfig(SweepConfig):
    """Which sweep goes on, and how fast.

    Attributes:
        concurrent: trials at a time; null: as before.
    """

    concurrent: int | None = local(None)


@dataclasses.dataclass
class AddConfig(ResumeConfig):
    """Which sweep gets more trials.

    Attributes:
        trials: how many more.
    """

    trials: int = local(10)

    def __post_init__(self) -> None:
        """Raise ConfigError for no trials."""
        require(self.trials >= 1, "trials", self.trials, "1 or more")


def status(cfg: SweepConfig) -> StageResult:
    """Say how a sweep stands; the JSON line holds its record."""
    storage, sweeps = _sweeps(cfg)
    sweep_id, record = _wanted(cfg, sweeps)
    state = _state(storage, sweep_id, record)
    for other, found in sweeps.items():
        if other != sweep_id:
            log.info("other sweep id=%s state=%s", _title(found), _state(storage, other, found))
    for line in _lines(record, state):
        log.info("%s", line)
    shown = {name: record[name] for name in ("best", "budget", "totals", "finalists")}
    best = _trial(record, record.get("winner", record["best"]))
    objectives = best["objectives"] if best else {}
    return StageResult(
        build_ids={"profiles": record["profiles_id"]},
        metrics={f"val_{name}": point(value) for name, value in objectives.items()},
        extra={
            "sweep": join(cfg.run, f"{SWEEPS}/{sweep_id}"),
            "name": record["name"],
            "state": state,
            "trials": counts(trial["state"] for trial in record["trials"]),
            **shown,
        },
    )


def pause(cfg: SweepConfig) -> StageResult:
    """Let a sweep begin no further trial."""
    return _asked(cfg, PAUSE)


def stop(cfg: SweepConfig) -> StageResult:
    """Let a sweep end what runs, and take the best so far."""
    return _asked(cfg, STOP)


def resume(cfg: ResumeConfig) -> StageResult:
    """Go on with a sweep as it was begun.

    Raises:
        ConfigError: it runs.
    """
    storage, sweeps = _sweeps(cfg)
    sweep_id, _ = _wanted(cfg, sweeps)
    owner = holder(storage, f"{SWEEPS}/{sweep_id}")
    if owner is not None:
        raise ConfigError(f"sweep {sweep_id} runs: {owner.name}")
    return _resumed(cfg, storage, sweep_id)


def add(cfg: AddConfig) -> StageResult:
    """Give a sweep more trials: one that runs takes them up, another one goes on with them.

    Raises:
        ConfigError: all of its grid is tried.
    """
    storage, sweeps = _sweeps(cfg)
    sweep_id, record = _wanted(cfg, sweeps)
    requests = Requests(storage, f"{SWEEPS}/{sweep_id}")
    if record["sampler"] == "grid" and record["budget"]["trials"] >= record["grid"]:
        raise ConfigError(f"sweep {sweep_id} tries all {record['grid']} settings of its grid")
    requests.ask(ADD, trials=cfg.trials)
    owner = holder(storage, f"{SWEEPS}/{sweep_id}")
    if owner is None:
        return _resumed(cfg, storage, sweep_id)
    log.info("trials added=%d sweep=%s runs at %s", cfg.trials, sweep_id, owner.name)
    return StageResult(extra={"sweep": sweep_id, "added": cfg.trials})


def report(cfg: SweepConfig) -> StageResult:
    """Write the page of a sweep again, also while it runs."""
    _, sweeps = _sweeps(cfg)
    sweep_id, _ = _wanted(cfg, sweeps)
    page = publish(Workspace(cfg.run, cache_dir=cfg.cache_dir), sweep_id)
    return StageResult(extra={"sweep": sweep_id, "page": page})


def _resumed(cfg: ResumeConfig, storage: Storage, sweep_id: str) -> StageResult:
    own = storage.read_json(f"{SWEEPS}/{sweep_id}/{SETTINGS}")
    if own is None:
        raise BuildError(f"{storage.url(f'{SWEEPS}/{sweep_id}/{SETTINGS}')} is missing")
    names = ("run", "cache_dir", "progress", "tracking")
    here: dict[str, Any] = {name: getattr(cfg, name) for name in names}
    here["ray"] = dataclasses.asdict(cfg.ray)
    if cfg.concurrent is not None:
        here["concurrent"] = cfg.concurrent
    return tune(load(TuneConfig, {**own, **here}), sweep_id=sweep_id)


def _asked(cfg: SweepConfig, what: str) -> StageResult:
    storage, sweeps = _sweeps(cfg)
    sweep_id, record = _wanted(cfg, sweeps)
    owner = holder(storage, f"{SWEEPS}/{sweep_id}")
    if owner is None:
        state = _state(storage, sweep_id, record)
        log.info("sweep=%s does not run state=%s: nothing to %s", sweep_id, state, what)
        return StageResult(extra={"sweep": sweep_id, "state": state})
    Requests(storage, f"{SWEEPS}/{sweep_id}").ask(what)
    log.info("%s asked for sweep=%s runs at %s", what, sweep_id, owner.name)
    return StageResult(extra={"sweep": sweep_id, "asked": what})


def _sweeps(cfg: SweepConfig) -> tuple[Storage, dict[str, dict[str, Any]]]:
    """Return the run's storage and the records of its sweeps by id, the one begun last first.

    Raises:
        ConfigError: there is none.
    """
    require_run(cfg)
    storage = Storage(cfg.run, cache_dir=cfg.cache_dir)
    names = [name for name in storage.files(SWEEPS) if name.count("/") == 1]
    ids = [name.split("/")[0] for name in names if name.endswith(f"/{RECORD}")]
    records = {}
    for each in ids:
        try:
            found = storage.read_json(f"{SWEEPS}/{each}/{RECORD}")
        except CorruptBuildError as error:
            log.warning("sweep left out id=%s: %s", each, error)
            continue
        if found is not None:
            records[each] = found
    if not records and not storage.is_there():
        raise ConfigError(f"run={without_keys(cfg.run)} does not exist")
    if not records:
        raise ConfigError(f"{cfg.run} holds no sweep yet: raysys tune begins one")
    return storage, dict(sorted(records.items(), key=lambda item: (-item[1]["started"], item[0])))


def _wanted(cfg: SweepConfig, sweeps: Mapping[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    for sweep_id, record in sweeps.items():
        if cfg.sweep in (None, sweep_id, record["name"]):
            return sweep_id, record
    known = ", ".join(_title(record) for record in sweeps.values())
    raise ConfigError(f"sweep={cfg.sweep!r} is not in the run: expected one of {known}")


def _state(storage: Storage, sweep_id: str, record: Mapping[str, Any]) -> str:
    """Return the state of a sweep; one whose process is gone was interrupted."""
    state: str = record["state"]
    if state == NOW_RUNNING and holder(storage, f"{SWEEPS}/{sweep_id}") is None:
        return INTERRUPTED
    return state


def _title(record: Mapping[str, Any]) -> str:
    name = record["name"]
    return str(record["sweep_id"]) + (f" ({name})" if name else "")


def _trial(record: Mapping[str, Any], number: int | None) -> dict[str, Any] | None:
    found = (trial for trial in record["trials"] if trial["number"] == number)
    return next(found, None)


def _lines(record: Mapping[str, Any], state: str) -> list[str]:
    """Return what people read of a sweep: how far it is, what runs, and its best trials."""
    age = max(0, int(time.time()) - int(record["updated"]))
    done = [trial for trial in record["trials"] if trial["state"] != "running"]
    names = [objective["name"] for objective in record["objectives"]]
    became = counts(trial["state"] for trial in done)
    shown_counts = ", ".join(f"{n} {state}" for state, n in became.items())
    lines = [
        f"sweep {_title(record)} {state}, {len(done)} of {record['budget']['trials'] + 1} trials"
        f"{f' ({shown_counts})' if became else ''}, "
        f"{record['totals']['seconds']:.0f} s, written {age} s ago"
    ]
    rounds = record.get("rounds")
    if rounds and state != FINISHED:
        lines.append(f"{rounds['done']} of {rounds['due']} trainings of finalists")
    for trial in record["trials"]:
        if trial["state"] == "running" and state == NOW_RUNNING:
            last = trial["history"][-1] if trial["history"] else None
            so_far = "has no epoch yet" if last is None else f"epoch {last[0]}: {last[1]:.5g}"
            lines.append(f"trial {trial['number']} {so_far} {json.dumps(trial['values'])}")
        if trial["error"]:
            lines.append(f"trial {trial['number']} failed: {trial['error']}")
    sign = -1 if record["objectives"][0]["direction"] == "max" else 1
    measured = [trial for trial in done if names[0] in trial["objectives"]]
    measured.sort(key=lambda trial: sign * trial["objectives"][names[0]])
    rows = [["trial", *names, "values"]]
    for trial in measured[:_SHOWN]:
        values = "defaults" if trial["number"] == 0 else json.dumps(trial["values"])
        shown = [f"{trial['objectives'][name]:.5g}" for name in names]
        rows.append([str(trial["number"]), *shown, values])
    lines += aligned(rows, left=(len(names) + 1,))
    if record["finalists"]:
        lines.append(record["finalists"]["verdict"])
    return lines
