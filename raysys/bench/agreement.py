"""Does an offline metric pick the model that wins online? For a table of yours, or in simulation.

    raysys bench suite=agreement table=models.csv online=ctr system=site [reference=recall@K]
    raysys bench suite=agreement run=runs/bench

The first reads one row per (system, model) with an online outcome and offline metrics. The second
makes simulated sites on a grid of exposure bias, drift and feedback, fits eight models on the log
of each, evaluates them on its test window (protocols cutoff, lloo and loo) and runs an A/B test
after the log's end. It writes `worlds.parquet` (such a table), `agreement.csv` and `agreement.png`
to `<run>/bench-agreement`.

Source of the experiment: Kasalicky, Alves, Kordik, EvalRS at KDD 2023, arXiv 2308.06885.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys import progress
from raysys.bench.agreement_measures import (
    Agreement,
    BestExponent,
    agreement,
    best_exponents,
    read_table,
)
from raysys.bench.contenders import fit_all, site_recommender
from raysys.bench.suites import BenchConfig
from raysys.config import location, require, require_run
from raysys.data.schema import period_windows
from raysys.errors import DataError
from raysys.evaluation import protocols
from raysys.evaluation.bootstrap import user_keys
from raysys.evaluation.evaluator import Evaluator
from raysys.evaluation.metric_table import BETAS, TOP_K, MetricLayout
from raysys.evaluation.presence import item_counts
from raysys.evaluation.user_sums import UserSums, rank_task
from raysys.reports.plots import Line, Panel, draw
from raysys.reports.tables import aligned
from raysys.simulate.site import Rank, Site, SiteLog, SiteSpec
from raysys.simulate.world import WorldSpec

log = logging.getLogger(__name__)

AXES = ("bias", "drift", "feedback")
_REFERENCE = "loo.recall@K^0"
_SLICED = ("loo.recall@K^0", "lloo.recall@K^0", "lloo.recall@K^0.3", "cutoff.recall@K^0.3")
_BLOCK_ROWS = 1024
_STYLES = ("-", "--", ":", "-.")  # of the values on an axis of the grid


@dataclasses.dataclass
class AgreementBenchConfig(BenchConfig):
    """Settings of the agreement suite.

    Attributes:
        table: your own models and outcomes, .csv or .parquet; null simulates.
        online: column of the online outcome, higher is better.
        system: column that tells systems apart; null is one system.
        reference: metric that the others' gain is counted from, `@K` for its list cuts.
        metrics: columns of the table that are offline metrics; null takes every other number.
        bias: exponents of the sites' exposure by popularity.
        drift: how far tastes go over the log, and how fast exposure fades after a release.
        feedback: shares of the exposure that the site's own recommender makes.
        repeats: sites per combination, each with its own seed.
        n_users, n_items, n_interactions: size of a site.
        replicates: bootstrap replicates over systems.
    """

    table: str | None = location(None)
    online: str = "ctr"
    system: str | None = None
    reference: str | None = None
    metrics: list[str] | None = None
    bias: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.5, 1.0])
    drift: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.5, 1.0])
    feedback: list[float] = dataclasses.field(default_factory=lambda: [0.0, 0.5])
    repeats: int = 2
    n_users: int = 1200
    n_items: int = 500
    n_interactions: int = 36_000
    replicates: int = 1000

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        for axis in AXES:
            values = getattr(self, axis)
            require(bool(values), axis, values, "at least one value")
            top = 2.0 if axis == "bias" else 1.0
            require(all(0 <= v <= top for v in values), axis, values, f"0 to {top:g} each")
        for name, least in (("repeats", 1), ("n_users", 100), ("n_items", 50), ("replicates", 0)):
            require(getattr(self, name) >= least, name, getattr(self, name), f">= {least}")
        per_user = self.n_interactions / self.n_users
        fits = 3 <= per_user <= self.n_items / 4
        require(fits, "n_interactions", self.n_interactions, "3 to n_items / 4 per user")


def rows(cfg: AgreementBenchConfig) -> list[dict[str, Any]]:
    """Return one row per metric, and for simulated sites some per value of the grid's axes."""
    if cfg.table is not None:
        found = agreement(
            complete(read_table(Path(cfg.table)), cfg),
            online=cfg.online,
            system=cfg.system,
            reference=cfg.reference,
            metrics=cfg.metrics,
            seed=cfg.seed,
            replicates=cfg.replicates,
        )
        return [_row("all", entry) for entry in found]
    require_run(cfg)
    folder = Path(cfg.run) / "bench-agreement"
    folder.mkdir(parents=True, exist_ok=True)
    table = simulate(cfg)
    pq.write_table(table, folder / "worlds.parquet", compression="zstd")
    return _analyse(cfg, table, folder)


def complete(table: pa.Table, cfg: AgreementBenchConfig) -> pa.Table:
    """Return a table without the systems that lack a number, and warn which these are.

    Raises:
        DataError: that leaves none, or there is no offline metric at all.
    """
    is_number = {field.name: _is_number(field.type) for field in table.schema}
    metrics = cfg.metrics or [n for n, is_one in is_number.items() if is_one]
    metrics = [n for n in metrics if n in is_number and n not in (cfg.online, cfg.system)]
    if not metrics:
        raise DataError(f"{cfg.table} holds no offline metric: expected a column of numbers")
    if cfg.system is None or not {cfg.system, cfg.online} <= set(table.column_names):
        return table  # agreement names the row, or the column
    gaps = pc.is_null(table[cfg.online])
    for name in metrics:
        gaps = pc.or_(gaps, pc.is_null(table[name]))
    lacking = pc.unique(table[cfg.system].filter(gaps))
    if not len(lacking):
        return table
    whole = table.filter(pc.invert(pc.is_in(table[cfg.system], value_set=lacking)))
    names = ", ".join(map(str, lacking.to_pylist()))
    if not len(whole):
        raise DataError(
            f"every {cfg.system} of {cfg.table} lacks a number in some column: choose with metrics="
        )
    log.warning("left out, as numbers are missing: %s=%s", cfg.system, names)
    return whole


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def simulate(cfg: AgreementBenchConfig) -> pa.Table:
    """Make all sites and return one row per (site, model)."""
    grid = list(itertools.product(cfg.bias, cfg.drift, cfg.feedback, range(cfg.repeats)))
    records: list[dict[str, Any]] = []
    with progress.stage("sites", total=len(grid), unit="sites", lines=progress.STEPS) as work:
        for number, (bias, drift, feedback, _) in enumerate(grid):
            started = time.perf_counter()
            world = WorldSpec(
                n_users=cfg.n_users,
                n_items=cfg.n_items,
                n_interactions=cfg.n_interactions,
                drift=drift,
                seed=int(np.random.SeedSequence([cfg.seed, number]).generate_state(1)[0]),
            )
            spec = SiteSpec(world, bias=bias, taste_drift=drift, feedback=feedback)
            with progress.shown("off"):  # a site's many small fits
                found = one_site(spec)
            place = {"site": f"{number:03d}", "bias": bias, "drift": drift, "feedback": feedback}
            records += [place | record for record in found]
            winner = max(found, key=lambda record: record["ctr"])
            seconds = time.perf_counter() - started
            work.add()
            work.say(
                f"site {number + 1} of {len(grid)} bias={bias:g} drift={drift:g} "
                f"feedback={feedback:g} winner={winner['model']} ctr={winner['ctr']:.4f} "
                f"seconds={seconds:.1f}"
            )
    return pa.Table.from_pylist(records)


def one_site(spec: SiteSpec) -> list[dict[str, Any]]:
    """Make one site's log, fit the models, evaluate them offline and online."""
    site = Site(spec, site_recommender)
    made = site.log()
    models = fit_all(made, seed=spec.world.seed)
    online = site.click_rates(made, [online for _, online in models.values()])
    offline = {name: rank for name, (rank, _) in models.items()}
    metrics = evaluate_offline(made, offline)
    return [
        {"model": name, "ctr": rate, **metrics[name]}
        for name, rate in zip(models, online, strict=True)
    ]


def evaluate_offline(made: SiteLog, models: dict[str, Rank]) -> dict[str, dict[str, float]]:
    """Return {model: {"protocol.metric": value}} on the test window."""
    windows = period_windows("temporal", "test")
    n_items = made.catalogue["test"]
    counts = item_counts(made.cells.in_windows(windows.fitted), n_items)
    layout = MetricLayout(top_k=TOP_K, betas=BETAS)
    keys = user_keys(made.cells.user_num)
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    for protocol in protocols.PROTOCOLS:
        tasks = _tasks(made, protocol, n_items)
        for name, rank in models.items():
            evaluator = Evaluator(layout, item_counts=counts, replicates=0)
            users = UserSums.empty(keys, first_user=0, layout=layout)
            for task in tasks:
                rank_task(evaluator, task, rank, users=users, block=_BLOCK_ROWS)
            values = evaluator.result()
            recalls = {m: v["mean"] for m, v in values.items() if m.startswith("recall@")}
            found[name] |= {f"{protocol}.{m}": float(v or 0) for m, v in recalls.items()}
    return found


def _tasks(made: SiteLog, protocol: str, n_items: int) -> list[protocols.Task]:
    windows = period_windows("temporal", "test")
    if protocol == "cutoff":
        return [protocols.cutoff_task(made.cells, windows, n_items=n_items)]
    last = protocol == "lloo"
    return list(protocols.leave_one_out_tasks(made.cells, windows, n_items=n_items, last=last))


def _analyse(cfg: AgreementBenchConfig, table: pa.Table, folder: Path) -> list[dict[str, Any]]:
    """Write the tables and the plot; return the rows."""
    metrics = [name for name in table.column_names if "recall@" in name]
    settings: dict[str, Any] = {"online": "ctr", "system": "site", "seed": cfg.seed}
    settings |= {"metrics": metrics, "replicates": cfg.replicates}
    found = agreement(table, reference=cfg.reference or _REFERENCE, **settings)
    best = best_exponents(table, **settings)
    for line in _paper_table(found, best):
        log.info("%s", line)
    result = [_row("all", entry) for entry in found]
    sliced: dict[str, list[Agreement]] = {}
    for axis in AXES:
        for value in getattr(cfg, axis):
            part = table.filter(pc.equal(table[axis], value))
            sliced[f"{axis}={value:g}"] = agreement(part, reference=_REFERENCE, **settings)
    for name, entries in sliced.items():
        result += [_row(name, entry) for entry in entries if entry.metric in _SLICED]
    plot(found, sliced, folder / "agreement.png")
    with (folder / "agreement.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, list(result[0]))
        writer.writeheader()
        writer.writerows(result)
        writer.writerows(
            _row(name, entry)
            for name, entries in sliced.items()
            for entry in entries
            if entry.metric not in _SLICED
        )
    result += [
        {"engine": "raysys", "sites": "all", "metric": entry.family, "best_beta": entry.beta}
        | {"as_good": list(entry.as_good), "drawn": list(entry.drawn)}
        for entry in best
    ]
    return result


def _row(sites: str, entry: Agreement) -> dict[str, Any]:
    recall, gain = entry.selection_recall, entry.gain or {}
    return {
        "engine": "raysys",
        "sites": sites,
        "metric": entry.metric,
        "picked": round(entry.picked, 2),
        "cells": entry.cells,
        "share": recall["mean"],
        "share_low": recall["ci_low"],
        "share_high": recall["ci_high"],
        "gain": gain.get("mean"),
        "gain_low": gain.get("ci_low"),
        "gain_high": gain.get("ci_high"),
        "kendall_tau": entry.kendall_tau["mean"],
        "regret": entry.regret["mean"],
        "chance": entry.chance,
    }


def _paper_table(found: list[Agreement], best: list[BestExponent]) -> list[str]:
    """Lay out how many cells each protocol and exponent pick: the table of the paper."""
    by_name = {entry.metric: entry for entry in found}
    some = found[0]
    head = [f"picked of {some.cells}", *(f"^{b:g}" for b in BETAS), "per user", "best beta"]
    body = [head]
    for protocol in protocols.PROTOCOLS:
        family = f"{protocol}.recall@K"
        good = next(entry for entry in best if entry.family == family)
        names = [*(f"{family}^{b:g}" for b in BETAS), family]
        span = f"{good.beta:g} ({good.as_good[0]:g}-{good.as_good[1]:g})"
        body.append([protocol, *(f"{by_name[n].picked:.0f}" for n in names), span])
    return [*aligned(body), f"chance {some.chance * some.cells:.0f}"]


def plot(found: list[Agreement], sliced: dict[str, list[Agreement]], path: Path) -> None:
    """Draw selection recall against beta: all sites with intervals, then by the grid's axes."""
    groups: dict[str, dict[str, list[Agreement]]] = {"all sites": {"": found}}
    for name, entries in sliced.items():
        groups.setdefault(name.partition("=")[0], {})[name.partition("=")[2]] = entries
    chance = Line("chance", [(beta, found[0].chance) for beta in BETAS], None, ":")
    panels = [
        Panel(
            title=title,
            x="beta",
            y="online winner picked (share)",
            lines=[
                _beta_line(protocol, value, entries, colour, style)
                for (value, entries), style in zip(
                    by_value.items(), itertools.cycle(_STYLES), strict=False
                )
                for colour, protocol in enumerate(protocols.PROTOCOLS)
            ]
            + [chance],
        )
        for title, by_value in groups.items()
    ]
    draw(panels, path)


def _beta_line(
    protocol: str, value: str, entries: list[Agreement], colour: int, style: str
) -> Line:
    """Return selection recall of one protocol at all betas, its intervals where all sites count."""
    recall = [e.selection_recall for e in entries if e.metric.startswith(f"{protocol}.recall@K^")]
    points = [(beta, r["mean"]) for beta, r in zip(BETAS, recall, strict=True)]
    spans = [(r["ci_low"], r["ci_high"]) for r in recall]
    band = [(low, high) for low, high in spans if low is not None and high is not None]
    return Line(
        name=f"{protocol} {value}".strip(),
        points=[(beta, mean) for beta, mean in points if mean is not None],
        colour=colour,
        style=style,
        band=band if len(band) == len(BETAS) and not value else (),
    )
