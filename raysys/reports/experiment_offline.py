"""The offline metrics of an experiment's arms, and the table that `bench suite=agreement` reads.

<run>/reports/experiments.parquet   a row per (experiment, arm) of all experiments reported so far
    experiment, arm, build_id, ranking
    conversion                      mean outcome of the arm's users
    <via>.<protocol>.<metric>       of the arm's build and ranking, e.g. model.cutoff.recall@20

An arm names the index that answered. The evaluations of that index, and of the codes and the model
below it, are found through the inputs of its manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysys.autoencoder.files import AutoencoderFacts
from raysys.errors import BuildError, ConfigError, DataError
from raysys.evaluation.experiment import Arm
from raysys.reports.files import of_build
from raysys.reports.methods import VIA
from raysys.scoring.rankings import Ranking
from raysys.store.builds import Workspace
from raysys.store.leases import leased

TABLE = "reports/experiments.parquet"
SYSTEM, MODEL, ONLINE = "experiment", "arm", "conversion"
_HIGHER_IS_BETTER = ("recall@", "ndcg@", "hit@")


def metrics_of(workspace: Workspace, build_id: str, ranking: str) -> dict[str, float]:
    """Return {`<via>.<protocol>.<metric>`: value} on the test window; empty where there is none.

    Args:
        workspace: of the run.
        build_id: of an index.
        ranking: as an impression names it; empty: the model's default.
    """
    try:
        chain = workspace.chain(workspace.open("index", build_id))
        default = AutoencoderFacts.of(chain["autoencoder"]).rankings[0]
        wanted = str(Ranking.parse(ranking or default))
    except (BuildError, ConfigError, KeyError, IndexError):
        return {}  # gone from the run, or of vectors without a model: nothing was evaluated
    found: dict[str, float] = {}
    for via, kind in VIA.items():
        for record in of_build(workspace, kind, chain[kind].build_id):
            if record["period"] != "test" or record["via"] != via or not record["rescore"]:
                continue
            if str(Ranking.parse(record["ranking"] or default)) != wanted:
                continue
            for name, entry in record["methods"][via]["metrics"].items():
                if name.startswith(_HIGHER_IS_BETTER) and entry["mean"] is not None:
                    found[f"{via}.{record['protocol']}.{name}"] = float(entry["mean"])
    return found


def rows_of(
    experiment: str,
    arms: Sequence[Arm],
    builds: Mapping[str, Sequence[tuple[str, str]]],
    metrics: Mapping[str, Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Return the table's rows of one experiment: metrics that all arms have, else none.

    Args:
        experiment: its name.
        arms: those without an outcome are left out, and fewer than two are none.
        builds: {arm: its (build_id, ranking), the main one first}.
        metrics: {arm: its offline metrics}.
    """
    known = [arm for arm in arms if arm.outcome.value is not None]
    if len(known) < 2:
        return []
    names = [
        name for name in metrics[known[0].name] if all(name in metrics[arm.name] for arm in known)
    ]
    return [
        {
            SYSTEM: experiment,
            MODEL: arm.name,
            "build_id": builds[arm.name][0][0],
            "ranking": builds[arm.name][0][1],
            ONLINE: arm.outcome.value,
            **{name: metrics[arm.name][name] for name in names},
        }
        for arm in known
    ]


def add(workspace: Workspace, experiment: str, rows: Sequence[dict[str, Any]]) -> None:
    """Put an experiment's rows into the table, in the place of those that it had.

    Raises:
        DataError: the table that is there cannot be read.
    """
    storage = workspace.storage
    with leased(storage, "reports/experiments") as lease:
        parts = [pa.Table.from_pylist(list(rows))] if rows else []
        content = storage.read(TABLE)
        if content is not None:
            try:
                before = pq.read_table(pa.BufferReader(content))
                keep = [name != experiment for name in before[SYSTEM].to_pylist()]
            except (pa.ArrowException, KeyError) as error:
                raise DataError(f"{storage.url(TABLE)} cannot be read: {error}") from error
            parts.insert(0, before.filter(pa.array(keep, pa.bool_())))
        if parts:
            sink = pa.BufferOutputStream()
            pq.write_table(pa.concat_tables(parts, promote_options="default"), sink)
            lease.confirm()
            storage.write_atomic(TABLE, sink.getvalue().to_pybytes())
