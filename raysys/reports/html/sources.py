"""What a run holds, read for its page: damaged or missing parts are named, never raised.

The record that comes of it is `<run>/reports/run.json`; the page is made from it alone.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from raysys.errors import BuildError, told
from raysys.evaluation.comparison import compare_users, users_of_report
from raysys.evaluation.headlines import HEADLINES
from raysys.reports import refreshes
from raysys.reports.html.pages import UNREADABLE, name_of_run
from raysys.reports.html.profile import profile_of
from raysys.reports.page import LEAD
from raysys.store.builds import Build, Workspace

log = logging.getLogger(__name__)

KINDS = ("interactions", "profiles", "autoencoder", "embeddings", "compressor", "codes", "index")
_HEADS = ("index", "codes", "embeddings", "autoencoder", "profiles", "interactions")
_HISTORY = "history.jsonl"


class Reader:
    """Reads parts of a run and keeps why a part could not be read.

    Args:
        workspace: of the run.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.problems: dict[str, str] = {}

    def read(self, part: str, make: Callable[[], Any]) -> Any:
        """Return what `make` gives, or None where it cannot be read."""
        try:
            return make()
        except UNREADABLE as error:
            self.problems[part] = f"{type(error).__name__}: {told(error)}"
            log.warning("a part of the run cannot be read part=%s error=%s", part, told(error))
            return None

    def json(self, name: str) -> dict[str, Any] | None:
        """Return the JSON object in a file, or None."""
        found: dict[str, Any] | None = self.read(
            name, lambda: self.workspace.storage.read_json(name)
        )
        return found

    def builds(self) -> dict[str, Build]:
        """Return {kind: build}: what is served with what that was made from, else the current."""
        found: dict[str, Build] = {}
        for kind in _HEADS:
            if kind not in found and self.read(kind, partial(self.workspace.has, kind)):
                build = self.read(kind, partial(self.workspace.current, kind))
                if build is not None:
                    chain = self.read(f"{kind} chain", partial(self.workspace.chain, build))
                    found = {**(chain or {kind: build}), **found}
        return {kind: found[kind] for kind in KINDS if kind in found}


def gather(workspace: Workspace) -> dict[str, Any]:
    """Return the record of a run, JSON values alone.

    Raises:
        BuildError: there is no such run.
    """
    if not workspace.storage.is_there():
        raise BuildError(f"{workspace.run} holds no run: raysys prepare begins one")
    reader = Reader(workspace)
    builds = reader.builds()
    profiles, autoencoder = builds.get("profiles"), builds.get("autoencoder")
    reports = _reports(reader)
    record = {
        "run": name_of_run(workspace.run),
        "builds": {kind: _build(build) for kind, build in builds.items()},
        "profile": reader.read("profiles data", lambda: profile_of(profiles)) if profiles else None,
        "history": reader.read(_HISTORY, lambda: _history(autoencoder)) if autoencoder else None,
        "evaluations": _of_kind(reader, reports, "evaluate-", _evaluation),
        "backtests": _of_kind(reader, reports, "backtest-", _backtest),
        "comparisons": _of_kind(reader, reports, "compare-", _comparison),
        "experiments": _of_kind(reader, reports, "experiment-", dict),
        "loss": _loss(reader, reports),
        "sweeps": _sweeps(reader),
        "refreshes": reader.read(refreshes.LEDGER, lambda: _refreshes(workspace)) or [],
        "problems": reader.problems,
    }
    return dict(json.loads(json.dumps(record)))


def _build(build: Build) -> dict[str, Any]:
    manifest = build.manifest
    return {
        "build_id": build.build_id,
        "config": manifest.config,
        "facts": manifest.facts,
        "notes": manifest.notes,
        "inputs": {kind: ref.get("build_id") for kind, ref in manifest.inputs.items()},
        "bytes": sum(entry["bytes"] for entry in manifest.files.values()),
    }


def _history(build: Build) -> list[dict[str, Any]]:
    """Return one record an epoch; none where the form of training keeps none."""
    if _HISTORY not in build.manifest.files:
        return []
    return [json.loads(line) for line in build.path(_HISTORY).read_text().splitlines() if line]


def _reports(reader: Reader) -> dict[str, dict[str, Any]]:
    """Return {name: record} of the reports of a run."""
    files = reader.read("reports", lambda: reader.workspace.storage.files("reports")) or {}
    names = [name for name in files if name.endswith(".json") and "/" not in name]
    found = {}
    for name in names:
        record = None if name == "run.json" else reader.json(f"reports/{name}")
        if record is not None:
            stem = name.removesuffix(".json")
            pages = [f"{stem}{end}" for end in (".html", ".md") if f"{stem}{end}" in files]
            found[stem] = record | {"page": pages[0] if pages else None}
    return found


_SHOWN = {LEAD, *HEADLINES}


def _of_kind(
    reader: Reader, reports: Mapping[str, Any], start: str, shown: Callable[[Any], Any]
) -> dict[str, Any]:
    """Return {name: what is shown of a report}; those of another form are named as damaged."""
    found = {
        name: reader.read(f"reports/{name}.json", partial(shown, record))
        for name, record in reports.items()
        if name.startswith(start)
    }
    return {name: record for name, record in found.items() if record is not None}


def _evaluation(record: dict[str, Any]) -> dict[str, Any]:
    """Return an evaluation with those metrics alone that pages show."""
    methods = {
        str(name): entry | {"metrics": {m: v for m, v in entry["metrics"].items() if m in _SHOWN}}
        for name, entry in record["methods"].items()
    }
    if record["via"] not in methods:
        raise ValueError(f"it is of via={record['via']}, which it does not hold")
    return record | {"methods": methods, "period": str(record["period"])}


def _comparison(record: dict[str, Any]) -> dict[str, Any]:
    found = {name: entry for name, entry in record["comparison"].items() if name in _SHOWN}
    return record | {"comparison": found}


def _backtest(record: dict[str, Any]) -> dict[str, Any]:
    return record | {"backtest": [dict(window) for window in record["backtest"]]}


def _loss(reader: Reader, reports: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what codes and index lose against the model: {via: {metric: difference}}."""
    model = reports.get("evaluate-test-model")
    found: dict[str, Any] = {}
    for via in ("codes", "index"):
        other = reports.get(f"evaluate-test-{via}")
        if model is None or other is None or _model_of(model) != _model_of(other):
            continue
        make = partial(_pairs, reader.workspace, via, model)
        pairs = reader.read(f"what {via} loses", make)
        if pairs is not None:
            found[via] = pairs
    return found or None


def _model_of(record: Mapping[str, Any]) -> Any:
    return (record.get("build_ids") or {}).get("autoencoder")


def _pairs(workspace: Workspace, via: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the paired differences of one path to the model, on the same users."""
    sides = [
        users_of_report(workspace.storage, f"reports/evaluate-test-{side}", side)
        for side in (via, "model")
    ]
    pairs, _ = compare_users(
        *sides,
        seed=int(model.get("seed") or 0),
        replicates=int(model.get("replicates") or 0),
        metrics=_SHOWN,
    )
    return {
        name: {"mean": d.difference, "ci_low": d.ci_low, "ci_high": d.ci_high, "of": d.other}
        for name, d in pairs.items()
    }


def _refreshes(workspace: Workspace) -> list[dict[str, Any]]:
    return [dataclasses.asdict(decision) for decision in refreshes.read(workspace.storage)]


def _sweeps(reader: Reader) -> dict[str, Any]:
    """Return {sweep_id: what stands in the list of sweeps}."""
    files = reader.read("sweeps", lambda: reader.workspace.storage.files("sweeps")) or {}
    found = {}
    for name in (name for name in files if name.endswith("/sweep.json")):
        record = reader.json(f"sweeps/{name}")
        if record is not None:
            sweep = name.removesuffix("/sweep.json")
            page = f"../sweeps/{sweep}/report.html" if f"{sweep}/report.html" in files else None
            found[sweep] = reader.read(f"sweeps/{name}", partial(_sweep, record, page))
    return {sweep: entry for sweep, entry in found.items() if entry is not None}


def _sweep(record: Mapping[str, Any], page: str | None) -> dict[str, Any]:
    kept = ("name", "state", "best", "updated", "totals")
    return {key: record.get(key) for key in kept} | {
        "objectives": [dict(objective) for objective in record["objectives"]],
        "verdict": (record.get("finalists") or {}).get("verdict"),
        "trials": len(record["trials"]),
        "page": page,
    }
