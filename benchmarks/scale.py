"""What large logs would take, from measured rates: the table of `docs/scale.md`.

Every rate is of a record in `results/`. A record was measured at one size; what a larger size takes
follows from how the work grows: with rows, users and items each for itself, or by the growth
between two sizes of the same record. What is assumed and not measured stands in `Assumed`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from raysys.autoencoder.config import Conv4RecConfig
from raysys.bench.records import Record
from raysys.commands.preflight import NO_RATES, Size, training
from raysys.errors import DataError
from raysys.training.optim import OptimConfig

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Assumed:
    """What no record says.

    Attributes:
        node_cores, nodes: a cluster of such nodes works on what can be split.
        core_units, gpu_units: money of an hour of a core and of a GPU.
        passes: over the users in a training, those of the refit too.
        batch: profiles of a step on a GPU.
        latent: dims of the consume block, as where the steps were measured.
        gpu_gib: memory of a GPU.
        judged: users that an evaluation looks at.
        merged_bytes: of a merge of `prepare` for each of its rows, tried on 126,157 of 80 pieces.
        blocks_gib: of a process that goes over items block by block.
    """

    node_cores: int = 16
    nodes: int = 4
    core_units: float = 1.0
    gpu_units: float = 40.0
    passes: int = 24
    batch: int = 16_384
    latent: int = 64
    gpu_gib: float = 139.0
    judged: int = 100_000
    merged_bytes: int = 350
    blocks_gib: float = 4.0


@dataclasses.dataclass(frozen=True)
class Log:
    """A log to be planned for."""

    interactions: int
    users: int
    items: int


LOGS = (Log(10**9, 10**8, 10**7), Log(10**9, 10**8, 10**8))


@dataclasses.dataclass(frozen=True)
class Rates:
    """Measured rates.

    Attributes:
        prepared: rows that a core prepares in a second.
        step_ms: (of any step, of each profile, of a million items) on a GPU.
        gpu_bytes: of a GPU for each item.
        coded: items that a core codes in a second.
        indexed: (items, core seconds, exponent of the growth) of the largest index built.
        index_bytes: of an index for each item.
        judged: users that a core evaluates in a second among a million items.
        answered: lists a second, of one process of a service over a million items.
        replica_bytes: of a replica for each item, mapped and private.
    """

    prepared: float
    step_ms: tuple[float, float, float]
    gpu_bytes: float
    coded: float
    indexed: tuple[int, float, float]
    index_bytes: float
    judged: float
    answered: float
    replica_bytes: float

    @classmethod
    def of(cls, records: Sequence[Record]) -> Rates:
        """Return the rates of the newest records that have them.

        Raises:
            DataError: no record has one of them.
        """
        ours = "sparse, cosine (default), NVIDIA H200"
        sizes = ((20_000, 512), (20_000, 4096), (1_000_000, 4096))
        steps = ({"engine": ours, "n_items": items, "batch": batch} for items, batch in sizes)
        few, many, large = _rows(records, "train", *steps)
        profile = (many["step_ms"] - few["step_ms"]) / (many["batch"] - few["batch"])
        millions = (large["n_items"] - many["n_items"]) / 1e6
        items = (large["step_ms"] - many["step_ms"]) / millions
        rest = few["step_ms"] - profile * few["batch"] - items * few["n_items"] / 1e6
        built = ({"engine": "raysys ivf", "n_items": n} for n in (10**6, 3 * 10**6))
        small, grown = _rows(records, "scale", *built)
        growth = math.log(grown["build_cpu_s"] / small["build_cpu_s"])
        growth /= math.log(grown["n_items"] / small["n_items"])
        [judged] = _rows(records, "evaluate", {"engine": "raysys evaluate", "users": 100_000})
        stored = {"part": "replica", "n_users": 10**6}  # what they take counts, too
        replicas = ({**stored, "n_items": n} for n in (12_000, 10**6))
        held, whole = _rows(records, "answer", *replicas)
        more_mb = sum(whole[key] - held[key] for key in ("private_mb", "mapped_mb"))
        match = {"engine": "raysys packed4", "n_items": 62_666, "bytes_per_item": 48}
        [coded] = _rows(records, "codes", match)
        [index] = _rows(records, "retrieval", {"engine": "raysys ivf", "n_items": 10**6})
        [served] = _rows(records, "serve", {"part": "answers", "connections": 8})
        return cls(
            prepared=_prepared(records),
            step_ms=(rest, profile, items),
            gpu_bytes=(large["peak_mb"] - many["peak_mb"]) * 2**20 / (millions * 1e6),
            coded=coded["items_per_core_s"],
            indexed=(grown["n_items"], grown["build_cpu_s"], growth),
            index_bytes=index["bytes_per_item"],
            judged=judged["users"] / judged["cpu_s"] * judged["items"] / 1e6,
            answered=served["per_second"],
            replica_bytes=more_mb * 2**20 / (whole["n_items"] - held["n_items"]),
        )


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage takes.

    Attributes:
        name: of the stage.
        core_h, gpu_h: hours of one core, of one GPU.
        hours: on the assumed cluster.
        gib: of the process that needs most.
        limit: what stands in the way first where more is asked.
    """

    name: str
    core_h: float
    gpu_h: float
    hours: float
    gib: float
    limit: str


def stages(log: Log, rates: Rates, assumed: Assumed = Assumed()) -> list[Stage]:
    """Return what each stage takes for a log."""
    cores = assumed.nodes * assumed.node_cores
    size = Size(log.items, log.users, log.interactions, 5)
    model = Conv4RecConfig(latent=assumed.latent)
    optim = OptimConfig(batch_size=assumed.batch)
    prepare = log.interactions / rates.prepared / 3600
    rest, profile, items = rates.step_ms
    step_s = (rest + profile * assumed.batch + items * log.items / 1e6) / 1e3
    train = assumed.passes * math.ceil(log.users / assumed.batch) * step_s / 3600
    on_gpu = rates.gpu_bytes * log.items / GIB
    gpus = math.ceil(on_gpu / assumed.gpu_gib)
    host = training(size, model, optim, workers=1, rates=NO_RATES).bytes
    code = log.items / rates.coded / 3600
    n, seconds, growth = rates.indexed
    index = seconds * (log.items / n) ** growth / 3600
    judge = assumed.judged / (rates.judged * 1e6 / log.items) / 3600
    part = max(1 << 19, log.interactions // 256) * assumed.merged_bytes
    replica = rates.replica_bytes * log.items / GIB
    limit = "all cells in each worker" if gpus == 1 else f"weights on {gpus} GPUs: not built"
    return [
        Stage("prepare", prepare, 0, prepare / cores, part / GIB, "256 buckets"),
        Stage("train", 0, train * gpus, train, (host["process"] + host["cells"]) / GIB, limit),
        Stage("codes", code, 0, code / cores, assumed.blocks_gib, "none in sight"),
        Stage("index", index, 0, index / cores, rates.index_bytes * log.items / GIB, _LISTS),
        Stage("evaluate", judge, 0, judge / cores, replica, "all items are scored for a user"),
    ]


_LISTS = "lists grow faster than items: n_shards"


def block(records: Sequence[Record]) -> str:
    """Return the tables between the markers of `docs/scale.md`."""
    rates, assumed = Rates.of(records), Assumed()
    lines = [
        f"Assumed: {assumed.nodes} nodes of {assumed.node_cores} cores, and GPUs of "
        f"{assumed.gpu_gib:g} GiB, one where the weights fit; {assumed.passes}",
        f"passes over the users, {assumed.batch:,} profiles a step, {assumed.latent} dims, "
        f"{assumed.judged:,} users evaluated; {assumed.merged_bytes} bytes",
        f"a row of a merge of `prepare`, {assumed.blocks_gib:g} GiB of a process that takes items "
        f"in blocks. An hour of a core is {assumed.core_units:g}",
        f"unit of money, of a GPU {assumed.gpu_units:g}.",
        "",
    ]
    for log in LOGS:
        lines += [
            f"### {log.interactions:,} interactions, {log.users:,} users, {log.items:,} items",
            "",
            "| stage | core hours | GPU hours | hours | GiB of a process | units | next limit |",
            "|---|---|---|---|---|---|---|",
        ]
        found = stages(log, rates, assumed)
        for stage in found:
            units = stage.core_h * assumed.core_units + stage.gpu_h * assumed.gpu_units
            lines.append(
                f"| {stage.name} | {_number(stage.core_h)} | {_number(stage.gpu_h)} | "
                f"{_number(stage.hours)} | {_number(stage.gib)} | {_number(units)} | "
                f"{stage.limit} |"
            )
        units = sum(s.core_h * assumed.core_units + s.gpu_h * assumed.gpu_units for s in found)
        replica = rates.replica_bytes * log.items / GIB
        on_gpu = rates.gpu_bytes * log.items / GIB
        lines += [
            "",
            f"Together {_number(sum(s.hours for s in found))} hours and {_number(units)} units. A "
            f"GPU would hold {_number(on_gpu)} GiB, a replica {_number(replica)} GiB;",
            f"a process of it answers {_number(rates.answered)} lists a second over a million "
            "items.",
            "",
        ]
    return "\n".join([*lines, *_measured(rates)])


def _measured(rates: Rates) -> list[str]:
    rest, profile, items = rates.step_ms
    return [
        "### Measured rates",
        "",
        "| what | rate | suite |",
        "|---|---|---|",
        f"| rows prepared by a core | {_number(rates.prepared)} a second | "
        "`volume`, else `prepare` |",
        f"| a step on a GPU | {_number(rest)} ms, {_number(1e3 * profile)} ms for 1,000 profiles, "
        f"{_number(items)} ms for a million items | `train` |",
        f"| memory of a GPU | {_number(rates.gpu_bytes)} bytes an item | `train` |",
        f"| items coded by a core | {_number(rates.coded)} a second | `codes` |",
        f"| an index of {rates.indexed[0]:,} items | {_number(rates.indexed[1])} core seconds, "
        f"growing with the power {rates.indexed[2]:.2f} of the items | `scale` |",
        f"| users evaluated by a core among a million items | {_number(rates.judged)} a second | "
        "`evaluate` |",
        f"| memory of an index | {_number(rates.index_bytes)} bytes an item | `retrieval` |",
        f"| memory of a replica | {_number(rates.replica_bytes)} bytes an item | `answer` |",
    ]


def _prepared(records: Sequence[Record]) -> float:
    """Return rows a core prepares in a second: of the largest log, of the newest record."""
    for record in records:
        steps = [row for row in record.rows if row.get("step") == "prepare"]
        if record.suite == "volume" and steps:
            return float(max(steps, key=lambda row: row["rows"])["rows_per_cpu_s"])
    for record in records:
        rows = [row for row in record.rows if row.get("engine") == "raysys prepare"]
        if record.suite == "prepare" and rows and record.machine.cores:
            largest = max(rows, key=lambda row: row["rows"])
            return float(largest["rows_per_s"]) / record.machine.cores
    raise DataError("no record of suite volume or prepare says how fast rows are prepared")


def _rows(records: Sequence[Record], suite: str, *matches: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the first row for each of some values, all of the newest record that has them.

    Raises:
        DataError: there is none.
    """
    wanted = list(matches)
    for record in records:
        if record.suite == suite:
            found = [next((r for r in record.rows if m.items() <= r.items()), None) for m in wanted]
            rows = [row for row in found if row is not None]
            if len(rows) == len(wanted):
                return rows
    raise DataError(f"no record of suite {suite} holds {wanted}")


def _number(value: float) -> str:
    if not value:
        return ""
    digits = max(0, 1 - math.floor(math.log10(abs(value))))
    return f"{round(value, digits):,.{digits}f}"
