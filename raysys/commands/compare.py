"""Compare: the paired difference of two runs, of two paths of one run, or of a baseline.

    raysys compare run=A other=B                 two runs
    raysys compare run=A via=model against=index what compression and search cost
    raysys compare run=A against=ease            the model against a baseline of its report

Works from the users' sums that `evaluate` wrote; a report that is missing, or is not of the current
builds, is made first. Writes `<run>/reports/compare-*.json` and a page beside it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from typing import Any

from raysys.commands.evaluate import REPORTS, EvaluateConfig, evaluate, report_name
from raysys.config import JobConfig, digest, location, require, require_run
from raysys.data.schema import PERIODS
from raysys.errors import BuildError, ConfigError, told
from raysys.evaluation import fit_baselines
from raysys.evaluation.comparison import Difference, compare_users, users_of_report
from raysys.evaluation.headlines import HEADLINES
from raysys.evaluation.protocols import PROTOCOLS
from raysys.reports.html import comparison, pages
from raysys.reports.methods import VIA, Subject
from raysys.reports.tables import aligned
from raysys.store.builds import StageResult, Workspace
from raysys.store.storage import join

log = logging.getLogger(__name__)

_KEPT = ("via", "period", "protocol", "ranking", "rescore", "seed", "replicates")


@dataclasses.dataclass
class CompareConfig(JobConfig):
    """Two evaluations; give `other`, `against`, or both.

    Attributes:
        other: the second run; null compares within `run`.
        via: path of the first: model, codes or index.
        against: path of the second, or a baseline; null takes `via`.
        period: window that is judged, val or test.
        protocol: histories, cutoff, lloo or loo, as in `evaluate`.
        ranking: as in `evaluate`.
        rescore: of a path via=index.
        replicates: bootstrap replicates of the difference.
    """

    other: str | None = location(None)
    via: str = "model"
    against: str | None = None
    period: str = "test"
    protocol: str = "cutoff"
    ranking: str | None = None
    rescore: bool = True
    replicates: int = 1000

    def __post_init__(self) -> None:
        """Raise ConfigError for values out of range."""
        methods = (*VIA, *fit_baselines.RANKERS, *fit_baselines.RATERS)
        require(self.via in VIA, "via", self.via, ", ".join(VIA))
        require(
            self.against is None or self.against in methods,
            "against",
            self.against,
            ", ".join(methods),
        )
        require(self.period in PERIODS, "period", self.period, " or ".join(PERIODS))
        require(self.protocol in PROTOCOLS, "protocol", self.protocol, ", ".join(PROTOCOLS))
        require(self.replicates >= 1, "replicates", self.replicates, "1 or more")


def compare(cfg: CompareConfig) -> StageResult:
    """Compare two evaluations on their common users.

    Returns:
        `metrics` {name: {"mean", "ci_low", "ci_high"}} are the differences, first minus second;
        `extra["comparison"]` holds both values and the shares of users better and worse.

    Raises:
        ConfigError: both sides are the same. BuildError, DataError: as `evaluate`.
    """
    require_run(cfg)
    if cfg.other is None and cfg.against in (None, cfg.via):
        raise ConfigError("nothing to compare: give other=RUN, or against= another path or method")
    second = cfg.against or cfg.via
    first_id, first = _users(cfg, cfg.run, cfg.via)
    second_id, last = _users(cfg, cfg.other or cfg.run, second)
    found, n_users = compare_users(first, last, seed=cfg.seed, replicates=cfg.replicates)
    for line in _table(found, cfg.via, second):
        log.info("%s", line)
    record = {
        "run": told(ValueError(cfg.run)),
        **{key: getattr(cfg, key) for key in _KEPT},
        "build_ids": first_id,
        "other": told(ValueError(cfg.other or cfg.run)),
        "other_build_ids": second_id,
        "against": second,
        "common_users": n_users,
        "comparison": {name: dataclasses.asdict(d) for name, d in found.items()},
    }
    workspace = Workspace(cfg.run, cache_dir=cfg.cache_dir)
    name = f"{REPORTS}/{comparison_name(cfg)}"
    workspace.storage.write_atomic(f"{name}.json", json.dumps(record, indent=1) + "\n")
    where = pages.publish(workspace, f"{name}.html", comparison.page_of(record))
    return StageResult(
        build_ids=first_id,
        metrics={
            name: {"mean": d.difference, "ci_low": d.ci_low, "ci_high": d.ci_high}
            for name, d in found.items()
        },
        extra={
            "other": cfg.other or cfg.run,
            "other_build_ids": second_id,
            "via": cfg.via,
            "against": second,
            "period": cfg.period,
            "common_users": n_users,
            "comparison": record["comparison"],
            "report": join(cfg.run, f"{name}.json"),
            "page": where,
        },
    )


def comparison_name(cfg: CompareConfig) -> str:
    """Return the file name of a comparison, without its suffix."""
    parts = ["compare", cfg.period, cfg.via, "against", cfg.against or cfg.via]
    if cfg.other is not None:  # two runs may have one name
        name = re.sub(r"[^\w.-]+", "-", pages.name_of_run(cfg.other))
        parts += ["of", name, digest({"other": cfg.other})[:6]]
    parts += [] if cfg.rescore else ["raw"]
    parts += [cfg.protocol] if cfg.protocol != "cutoff" else []
    parts += [cfg.ranking] if cfg.ranking else []
    return "-".join(parts)


def _users(cfg: CompareConfig, run: str, method: str) -> tuple[dict[str, str], Any]:
    """Return the build_ids and the users' sums of one side, evaluating first where needed."""
    via = method if method in VIA else cfg.via
    wanted = EvaluateConfig(
        run=run,
        seed=cfg.seed,
        cache_dir=cfg.cache_dir,
        ray=cfg.ray,
        period=cfg.period,
        via=via,
        rescore=cfg.rescore,
        ranking=cfg.ranking,
        protocol=cfg.protocol,
        baselines=[] if method in VIA else [method],
    )
    workspace = Workspace(run, cache_dir=cfg.cache_dir)
    name = report_name(wanted)
    build_ids = Subject.open(workspace, via).build_ids
    record = workspace.storage.read_json(f"{REPORTS}/{name}.json")
    if record is None or record["build_ids"] != build_ids or method not in record["methods"]:
        log.info("compare evaluates run=%s via=%s", run, via)
        evaluate(wanted)
        record = workspace.storage.read_json(f"{REPORTS}/{name}.json")
    if record is None or method not in record["methods"]:
        raise BuildError(f"{method} does not apply to the log of {run}")
    return build_ids, users_of_report(workspace.storage, f"{REPORTS}/{name}", method)


def _table(found: dict[str, Difference], first: str, second: str) -> list[str]:
    rows = [["metric", first, second, "difference", "95 % interval", "better", "worse"]]
    for name in HEADLINES:
        if name in found:
            d = found[name]
            span = "-" if d.ci_low is None else f"{d.ci_low:+.4f}..{d.ci_high:+.4f}"
            rows.append(
                [
                    name,
                    f"{d.mean:.4f}",
                    f"{d.other:.4f}",
                    f"{d.difference:+.4f}",
                    span,
                    f"{d.better:.1%}",
                    f"{d.worse:.1%}",
                ]
            )
    return aligned(rows)
