"""Records: JSON files that say what was measured, where, when, with what and by which commit.

A suite of `raysys bench` writes one with `save=`; `benchmarks/render.py` reads them all.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from raysys.bench.resources import load_average
from raysys.config import JobConfig
from raysys.errors import ConfigError, DataError
from raysys.fields import LOCATION
from raysys.store import manifests

RECORD_KINDS = ("bench", "quality")
_PEERS = ("faiss-cpu", "ir-measures", "polars", "scalable-vs", "usearch")
_LOCAL = {field.name for field in dataclasses.fields(JobConfig)} - {"seed"} | {"save"}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where it was measured; None: not recorded.

    Attributes:
        processor: its model.
        cores: that this process may use.
        memory_gib: of the machine.
        gpu: name of the first card; None also where there is none.
        load: processes that wanted a core over the minute before.
    """

    processor: str | None
    cores: int | None
    memory_gib: float | None
    gpu: str | None
    load: float | None


@dataclasses.dataclass(frozen=True)
class Record:
    """What was measured at one time, on one machine, with one setting; None: not recorded.

    Attributes:
        kind: `bench`, what a suite measures; `quality`, metrics of what was trained.
        suite: name of the suite.
        date: day of the run, YYYY-MM-DD, UTC.
        machine: where.
        commit: revision of the checkout.
        dirty: whether tracked files differed from that commit.
        versions: {package: version}.
        setting: the suite's configuration; of paths the last name.
        source: what wrote the record.
        remarks: sentences that a reader of the rows needs.
        rows: the figures.
    """

    kind: str
    suite: str
    date: str
    machine: Machine
    commit: str | None
    dirty: bool | None
    versions: dict[str, str] | None
    setting: dict[str, Any]
    source: str
    remarks: list[str]
    rows: list[dict[str, Any]]

    def text(self) -> str:
        """Return the record as JSON, a line a row."""
        head = dataclasses.asdict(self)
        rows = head.pop("rows")
        lines = ",\n".join(f"  {json.dumps(row, allow_nan=False)}" for row in rows)
        return f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{lines}\n ]\n}}\n'

    @classmethod
    def read(cls, path: Path) -> Record:
        """Return the record that a file holds.

        Raises:
            DataError: it is no record.
        """
        try:
            values = json.loads(path.read_text())
            record = cls(**{**values, "machine": Machine(**values["machine"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} is no record of measurements: {error}") from error
        wrong = [name for name, is_right in _checks(record).items() if not is_right]
        if wrong:
            raise DataError(f"{path} is no record of measurements: see its {', '.join(wrong)}")
        return record


def begin(suite: str, cfg: JobConfig) -> Record:
    """Return a record without rows: the moment, the machine as it is, the settings."""
    notes = manifests.notes()
    return Record(
        kind="bench",
        suite=suite,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=machine(),
        commit=notes["git_revision"],
        dirty=manifests.is_dirty(),
        versions=notes["versions"] | _peer_versions(),
        setting=_setting(cfg),
        source="raysys bench",
        remarks=[],
        rows=[],
    )


def machine() -> Machine:
    """Return the machine of this process, and its load now."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        processor=processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(memory / (1 << 30), 1),
        gpu=_gpu(),
        load=load_average(),
    )


def processor() -> str:
    """Return the model of the processor."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x.partition(":")[2] for x in info.read_text().splitlines() if "model name" in x]
        model = names[0].strip() if names else model
    return model


def free_path(save: str, record: Record) -> Path:
    """Return the file to write a record to.

    Args:
        save: a file that ends with .json and does not exist yet, or a folder, where it is the first
            free of `<suite>-<card or cpu>-<date>.json`, `...-2.json`, and so on.
        record: decides the name in a folder.

    Raises:
        ConfigError: the file exists, or the folder cannot be made.
    """
    path = Path(save)
    is_file = path.suffix == ".json"
    if is_file and path.exists():
        raise ConfigError(f"save={save!r} exists already: expected a new file, or a folder")
    try:
        (path.parent if is_file else path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"save={save!r} cannot be written: {error}") from error
    if is_file:
        return path
    card = re.sub(r"[^a-z0-9]+", "-", (record.machine.gpu or "cpu").lower()).strip("-")
    stem, number = f"{record.suite}-{card}-{record.date}", 1
    while (path / _numbered(stem, number)).exists():
        number += 1
    return path / _numbered(stem, number)


def write(record: Record, path: Path) -> None:
    """Write a record to a new file.

    Raises:
        ConfigError: the file exists by now, or cannot be written.
    """
    try:
        with path.open("x") as file:
            file.write(record.text())
    except OSError as error:
        raise ConfigError(f"save={str(path)!r} cannot be written: {error}") from error


def _numbered(stem: str, number: int) -> str:
    return f"{stem}.json" if number == 1 else f"{stem}-{number}.json"


def _checks(record: Record) -> dict[str, bool]:
    """Return {field: whether it holds what it should}."""
    commit = record.commit
    return {
        "kind": record.kind in RECORD_KINDS,
        "suite": bool(record.suite) and isinstance(record.suite, str),
        "date": _is_day(record.date),
        "commit": commit is None or re.fullmatch(r"[0-9a-f]{7,40}", str(commit)) is not None,
        "setting": isinstance(record.setting, Mapping),
        "source": bool(record.source) and isinstance(record.source, str),
        "remarks": isinstance(record.remarks, list),
        "rows": bool(record.rows) and all(isinstance(row, Mapping) for row in record.rows),
    }


def _is_day(text: object) -> bool:
    try:
        return datetime.date.fromisoformat(str(text)).isoformat() == str(text)
    except ValueError:
        return False


def _setting(cfg: JobConfig) -> dict[str, Any]:
    """Return the values of a configuration; paths say nothing elsewhere, their last names do."""
    setting = {}
    for field in dataclasses.fields(cfg):
        if field.name not in _LOCAL | {"suite"}:
            value = getattr(cfg, field.name)
            setting[field.name] = (
                Path(value).name if value and LOCATION in field.metadata else value
            )
    return setting


def _gpu() -> str | None:
    import torch  # not before it is needed

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _peer_versions() -> dict[str, str]:
    """Return the versions of the peers that are installed."""
    versions = {}
    for name in _PEERS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
