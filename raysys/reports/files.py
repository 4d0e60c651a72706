"""What an evaluation leaves in a run: the users' sums, then the report that names them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from raysys.errors import CorruptBuildError
from raysys.evaluation.evaluator import Evaluator
from raysys.reports.passes import Evaluated
from raysys.store.builds import Build, Workspace
from raysys.store.temporary import temporary_folder

OF_BUILDS = "reports/of-builds"
_KEPT = ("period", "via", "rescore", "protocol", "ranking", "evaluated")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The merged evaluators of all shards and what was left out."""

    evaluators: dict[str, Evaluator]
    dropped: Counter[str]


@contextlib.contextmanager
def user_files(workspace: Workspace, target: str) -> Iterator[Path]:
    """Give a local folder whose files lie in `target` of the run when the block succeeds."""
    storage = workspace.storage
    folder = Path(storage.root) / target if storage.is_local else temporary_folder("report")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
        if not storage.is_local:
            storage.upload(folder, target)
    except BaseException:
        storage.delete(target)
        storage.prune(target.rpartition("/")[0])
        raise
    finally:
        if not storage.is_local:
            shutil.rmtree(folder, ignore_errors=True)


def publish(workspace: Workspace, report: str, record: dict[str, Any], page: str) -> None:
    """Write a report's page and JSON, and delete the users' sums of the report it replaces."""
    try:
        before = workspace.storage.read_json(f"{report}.json") or {}
    except CorruptBuildError:
        before = {}
    workspace.storage.write_atomic(f"{report}.md", page)
    workspace.storage.write_atomic(f"{report}.json", json.dumps(record, indent=1) + "\n")
    if before.get("report_id"):
        workspace.storage.delete(f"{report}/{before['report_id']}")


def keep(workspace: Workspace, head: Build, name: str, record: dict[str, Any]) -> None:
    """Keep the metrics of an evaluation beside those of other builds: `publish` replaces its page.

    Args:
        workspace: of the run.
        head: the build that was evaluated.
        name: of the report.
        record: the report.
    """
    kept = {key: record[key] for key in (*_KEPT, "build_ids")}
    methods = {record["via"]: {"metrics": record["methods"][record["via"]]["metrics"]}}
    where = workspace.path(f"{OF_BUILDS}/{head.kind}-{head.build_id}/{name}.json")
    workspace.storage.write_atomic(where, json.dumps(kept | {"methods": methods}) + "\n")


def of_build(workspace: Workspace, kind: str, build_id: str) -> list[dict[str, Any]]:
    """Return what `keep` keeps of a build, in order of the reports' names."""
    folder = workspace.path(f"{OF_BUILDS}/{kind}-{build_id}")
    names = [name for name in workspace.storage.files(folder) if name.endswith(".json")]
    records = [workspace.storage.read_json(f"{folder}/{name}") for name in names]
    return [record for record in records if record is not None]


def merge(results: Iterable[Evaluated], folder: Path) -> Outcome:
    """Add up the shards in order and write their users' sums, one file per method."""
    merged: dict[str, Evaluator] = {}
    dropped: Counter[str] = Counter()
    with contextlib.ExitStack() as files:
        writers: dict[str, pq.ParquetWriter] = {}
        for result in results:
            dropped.update(result.dropped)
            for method, evaluator in result.evaluators.items():
                table = result.tables[method]
                if method in merged:
                    merged[method].merge(evaluator)
                else:
                    merged[method] = evaluator
                    path = folder / f"{method}.parquet"
                    writers[method] = files.enter_context(
                        pq.ParquetWriter(path, table.schema, compression="zstd")
                    )
                writers[method].write_table(table)
    return Outcome(merged, dropped)
