"""The sections of the page: what a suite is about, and its rows as Markdown tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from raysys.bench.records import Record

Row = dict[str, Any]
Cells = list[list[str]]

OURS = "raysys"
_LESS_IS_BETTER = ("rmse", "nll", "ece")


@dataclasses.dataclass(frozen=True)
class Section:
    """A suite on the page.

    Attributes:
        suite: its name.
        title: heading.
        text: what is measured.
        plot: what its plot shows, the text where it cannot be seen; empty: it has none.
    """

    suite: str
    title: str
    text: str
    plot: str = ""


SECTIONS = (
    Section(
        "folds",
        "Recommendation quality on fixed folds",
        "The model, and in brackets the best baseline of the same report. Bold is the better one. "
        "RMSE, NLL and ECE are better when small.",
    ),
    Section(
        "order",
        "Peers on the same folds, and what the order of events is worth",
        "`raysys bench suite=order`: rankers of reports, a small SASRec (`sasrec-shuffled`: the "
        "same network on shuffled sequences), and RecVAE on folds of users. Settings and epochs "
        "are chosen on validation, intervals are over users.",
    ),
    Section(
        "backtest",
        "Windows of the past",
        "`raysys backtest windows=8`: the mean difference to the baseline that validation of each "
        "window prefers, with its 95 % interval over windows, and windows in which the model is "
        "ahead.",
    ),
    Section(
        "pipeline",
        "The whole pipeline on raw logs",
        "`raysys pipeline` with all defaults, and the best baselines of its report.",
    ),
    Section(
        "service",
        "What candidates and codes cost",
        "The share of the exact answer that is left when an index is asked instead of the model.",
    ),
    Section(
        "codes",
        "Compressed vectors at equal bytes",
        "`raysys bench suite=codes`: the exact top 10 of dense vectors that codes find again. "
        "Query rows are held out; faiss is trained in the same run on the same rows.",
        "Recall@10 against bytes per item: raysys codes and faiss quantisers",
    ),
    Section(
        "retrieval",
        "Search engines",
        "`raysys bench suite=retrieval`: engines on the same vectors, cores and queries.",
        "Median time of a query against the number of items, engine by engine",
    ),
    Section(
        "scale",
        "Search as the catalogue grows",
        "`raysys bench suite=scale`: a query and a build of the `ivf` index at growing sizes.",
        "Median time of a query against the number of items: ivf index and exact scan",
    ),
    Section(
        "answer",
        "A whole answer as the catalogue grows",
        "`raysys bench suite=answer`: CPU time of one recommendation and of its steps, on a "
        "catalogue grown from a real run, and what a replica opens and holds. `every item` is the "
        "float32 product with all items that an answer needed before.",
    ),
    Section(
        "steer",
        "Steering by atoms",
        "`raysys bench suite=steer`: one atom at a time, of those of which a user's list of 20 has "
        "one of the ten strongest items. Muted at -1: users and pairs of a user and an atom whose "
        "list then has none of the ten; of what went, the share that holds the atom, and how often "
        "it holds more of it than what stayed. By weight: the share of the list that changes, the "
        "strongest ten in the list before and after, and the share of the list that scores of all "
        "items would give too. Time: CPU time of an answer without atoms, and the median ratio to "
        "it, also of asking again without.",
    ),
    Section(
        "sweeps",
        "Sweeps",
        "`raysys bench suite=sweeps`. asha: the same settings with and without early stopping; "
        "`value` is what the winner has when it is trained whole. winner: a sweep of the default "
        "space, and its winner against the defaults on the test period, which it has not seen. "
        "front: the area that trials dominate, from one corner, after all of them and halfway. "
        "`overhead_share` is the part of the trials' time that was no training.",
    ),
    Section(
        "events",
        "Events that a service takes",
        "`raysys bench suite=events`: batches of 1,000 to a service that may use one CPU, beside "
        "the sender; how long after the acknowledgement another service of the run knows the "
        "user; the median answer for a user of one event and of 100; and what was lost or doubled "
        "of that which a service acknowledged before it was killed.",
    ),
    Section(
        "loop",
        "The loop, on a simulated site",
        "`raysys bench suite=loop`: the same users with the same luck come to three services of "
        "one index for weeks. `frozen` is told nothing, `events` every click and all that users "
        "take elsewhere; `refreshed` also counts them anew each week, without training. Then "
        "models meet in experiments, those that two offline metrics prefer, and the first and the "
        "last: chances of a click by the truth, and the difference of clicks a visit as the "
        "report has it. `picked` says of how many experiments a metric had picked the winner.",
        "Two panels over weeks: the share of visits that click, and recall of what users take "
        "elsewhere. Without events both fall steeply.",
    ),
    Section(
        "serve",
        "Answers over HTTP, and what clients see of events",
        "`raysys bench suite=serve`: closed loops at one replica behind HAProxy, behind Serve's "
        "own proxy, and under uvicorn alone, which is the floor; the load generator runs beside "
        "it. Then an open loop at half of the capacity of two replicas, while things happen to "
        "them, without retries and with those of the client.",
    ),
    Section(
        "train",
        "Training",
        "`raysys bench suite=train`: the sparse path against one-hot tensors (`textbook`), and "
        "two workers against one.",
        "Milliseconds of a training step against the bound of its card",
    ),
    Section(
        "minutes",
        "Seconds to a model",
        "`raysys bench suite=minutes`: from profiles to the autoencoder build by default, Ray's "
        "start apart, beside EASE and iALS in the same run.",
    ),
    Section(
        "volume",
        "A large log",
        "`raysys bench suite=volume`: a log simulated and prepared, each with a cluster of its "
        "own. Memory is that of all processes.",
    ),
    Section(
        "prepare",
        "Preparing a log",
        "`raysys bench suite=prepare`: the stage against polars doing the same work.",
        "Rows a second against rows of the log: raysys prepare and polars",
    ),
    Section(
        "ratings",
        "Ratings",
        "`raysys bench suite=ratings`: random splits of logs as the literature makes them, and "
        "planted logs of ratings 1..10 with a known number of factors.",
    ),
    Section(
        "recovery",
        "Recovering a known distribution",
        "`raysys bench suite=recovery`: the model's joint P(item, rating | user) against the one "
        "that interactions were drawn from, beside simpler models.",
        "Total variation to the truth against interactions drawn",
    ),
    Section(
        "agreement",
        "Which offline metric picks the online winner",
        "`raysys bench suite=agreement`: simulated sites with an A/B test. The table counts the "
        "(site, list length) pairs in which the best model by an offline metric wins online.",
        "Share of online winners picked against the popularity penalty of the metric",
    ),
    Section(
        "experiments",
        "How often reports of experiments are wrong",
        "`raysys bench suite=experiments`: simulated logs through what `raysys experiment report` "
        "does. Users differ a hundredfold in impressions, and their habits drift. Arms that are "
        "alike: false alarms of the test that is read after every user, at 5 %, and those of a "
        "z-test read as often. An arm that is better: users until that is decided, beside those "
        "that a z-test read once needs for a power of 80 %. Then the coverage of 95 % intervals, "
        "and alarms of the check of the split at 1 %.",
    ),
    Section(
        "evaluate",
        "Evaluation",
        "`raysys bench suite=evaluate`: the stage on simulated users, and its metrics alone "
        "against ir-measures.",
    ),
)


@dataclasses.dataclass(frozen=True)
class Column:
    """How a key of the rows stands in a table.

    Attributes:
        label: heading, with the unit.
        form: format of numbers.
        unit: what values are divided by.
    """

    label: str
    form: str = ",.6g"
    unit: int = 1


COLUMNS = {
    "recall@10": Column("recall@10", ".3f"),
    "recall@100": Column("recall@100", ".3f"),
    "own_recall@10": Column("recall@10 of its own ranking", ".3f"),
    "held_out_loss": Column("cosine lost on held-out rows", ".3f"),
    "n_items": Column("items", ",.0f"),
    "bytes_per_item": Column("bytes per item"),
    "bytes_per_item_with_dictionary": Column("with dictionary"),
    "train_s": Column("training, s"),
    "epoch_s": Column("epoch, s"),
    "n_cells": Column("cells", ",.0f"),
    "copy_gb_per_s": Column("copy, GB/s", ",.0f"),
    "tflop_per_s": Column("product, TFLOP/s", ",.0f"),
    "examples_per_s": Column("rows/s"),
    "products_examples_per_s": Column("rows/s of its products alone"),
    "items_per_core_s": Column("items/s and core"),
    "core_hours_100m": Column("core hours for 100 M"),
    "pays_from_items": Column("pays from items"),
    "batch_cpu_ms": Column("in batches of 64, CPU ms", ".3f"),
    "p50_cpu_ms_at_0.9": Column("p50 at .9 of the dense truth", ".3f"),
    "p50_cpu_ms_at_0.95": Column("at .95", ".3f"),
    "p50_cpu_ms_at_0.99": Column("at .99", ".3f"),
    "p50_cpu_ms": Column("p50, CPU ms", ".3g"),
    "p99_cpu_ms": Column("p99, CPU ms", ".3g"),
    "exact_cpu_ms": Column("exact scan, CPU ms", ".3g"),
    "encode_ms": Column("encode, ms", ".3f"),
    "search_ms": Column("search, ms", ".3f"),
    "normalise_ms": Column("normalise, ms", ".3f"),
    "rescore_ms": Column("rescore, ms", ".3f"),
    "whole_ms": Column("whole, ms", ".3f"),
    "whole_p99_ms": Column("whole, p99", ".3f"),
    "batch_ms_a_profile": Column("of a hundred at once, ms each", ".3f"),
    "walk_ms": Column("every item, ms", ".3g"),
    "open_s": Column("opened, s", ".2f"),
    "open_with_hashes_s": Column("with hashes, s", ".1f"),
    "private_mb": Column("private, MB", ",.0f"),
    "mapped_mb": Column("mapped, MB", ",.0f"),
    "log_p_error_median": Column("error of log P, median", ".4f"),
    "log_p_error_p99": Column("p99", ".4f"),
    "qps": Column("queries/s, 1 thread"),
    "qps_2_threads": Column("queries/s, 2 threads"),
    "build_cpu_s": Column("build, CPU s"),
    "load_s": Column("load, s"),
    "resident_bytes": Column("resident, MB", ",.0f", 1 << 20),
    "per_second": Column("lists/s", ",.0f"),
    "p50_ms": Column("p50, ms", ".3g"),
    "p99_ms": Column("p99, ms", ".3g"),
    "max_ms": Column("longest, ms", ".3g"),
    "event_s": Column("took, s", ".1f"),
    "setting": Column("setting"),
    "batch": Column("profiles a step", ",.0f"),
    "profiles_per_s": Column("profiles/s", ",.0f"),
    "step_ms": Column("step, ms"),
    "bound_ms": Column("bound, ms", ".2f"),
    "peak_mb": Column("peak, MB", ",.0f"),
    "peak_pss_mb": Column("peak, MB", ",.0f"),
    "peak_pss_gb": Column("peak, GB"),
    "seconds": Column("seconds"),
    "seconds_with_ray": Column("with Ray's start"),
    "rows_per_s": Column("rows/s", ",.3g"),
    "rate_of_peer": Column("rate of the peer", ".2f"),
    "rate_of_peer_with_ray": Column("rate with Ray's start", ".2f"),
    "cpu_s": Column("CPU s"),
    "recall@20": Column("recall@20", ".3f"),
    "recall@20^0.3": Column("recall@20^0.3", ".4f"),
    "ndcg@100": Column("NDCG@100", ".3f"),
    "value": Column("value", ".4f"),
    "model": Column("autoencoder", ".3f"),
    "rating-blind": Column("rating-blind", ".3f"),
    "independent": Column("independent", ".3f"),
    "popularity": Column("popularity", ".3f"),
    "nll": Column("NLL"),
    "rmse": Column("RMSE"),
    "ece": Column("ECE"),
    "z_test_alarms": Column("alarms of a z-test", ",.0f"),
    "control": Column("converted, control", ".4f"),
    "better": Column("converted, better", ".4f"),
    "wrong": Column("decided wrongly", ",.0f"),
    "median_users": Column("median users", ",.0f"),
    "z_test_users": Column("users of the z-test", ",.0f"),
    "decided_at_z_test_users": Column("decided by then", ",.0f"),
    "called_at_any_time": Column("called, read after every user", ",.0f"),
    "chi_square_once": Column("chi-square, read once", ",.0f"),
    "chi_square_every_user": Column("chi-square, read after every user", ",.0f"),
    "enjoyment": Column("true enjoyment", ".3f"),
    "exposure": Column("exposure", ".3g"),
}
_UNSHOWN = ("similarity", "epochs", "part")


def tables_of(record: Record) -> list[Cells]:
    """Return the tables of a record, each a line of headings and lines of cells."""
    if record.suite in _PIVOTS:
        return [_PIVOTS[record.suite](record.rows)]
    keys = _KINDS_OF_ROWS.get(record.suite, ())
    groups: dict[str, list[Row]] = {}
    rows = _by_week(record.rows) if record.suite == "loop" else record.rows
    for row in rows:
        groups.setdefault(next((key for key in keys if key in row), ""), []).append(row)
    return [_table(rows) for rows in groups.values()]


def _by_week(rows: Sequence[Row]) -> list[Row]:
    """Return rows of the loop suite, those of a week as one."""
    weeks: dict[int, Row] = {}
    others = []
    for row in rows:
        if row["part"] != "weeks":
            shown = {key: value for key, value in row.items() if key != "load_average"}
            others.append({_SAID.get(key, key): value for key, value in shown.items()})
            continue
        week = weeks.setdefault(row["week"], {"week": row["week"], "visits": row["visits"]})
        week |= {f"{key}, {row['condition']}": row[key] for key in ("conversion", "recall")}
    return [*(dict(sorted(week.items(), key=_column_place)) for week in weeks.values()), *others]


_SAID = {"control": "against", "better": "winner"}  # other suites mean other things


def _column_place(item: tuple[str, Any]) -> int:
    return ("week", "visits", "conversion", "recall").index(item[0].partition(",")[0])


def markdown(cells: Cells) -> list[str]:
    """Return the lines of a Markdown table."""
    rule = ["---"] * len(cells[0])
    return [f"| {' | '.join(line)} |" for line in (cells[0], rule, *cells[1:])]


def number(value: Any, column: Column) -> str:
    """Return a value as it stands in a cell."""
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        text = format(value / column.unit if column.unit != 1 else value, column.form)
        return f"{float(text.replace(',', '')):,.0f}" if "e+" in text else text
    return str(value)


# What tells the kinds of rows of a suite apart: the key that each kind has, first match first.
_KINDS_OF_ROWS = {
    "codes": ("bytes_per_item", "compression", "times_the_products"),
    "answer": ("ranking", "private_mb"),
    "serve": ("server", "event"),
    "events": ("seen_p50_s", "per_second", "few_p50_ms", "kills"),
    "loop": ("week", "contender", "against", "metric"),
    "steer": ("users_without", "changed", "share", "plain_ms"),
    "train": ("copy_gb_per_s", "batch", "of_two_processes"),
    "ratings": ("planted", "data"),
    "recovery": ("draws", "ranking", "model"),
    "experiments": ("alarms", "decided", "coverage", "split"),
    "sweeps": ("condition", "sampler", "verdict"),
    "evaluate": ("items", "users"),
}


def _table(rows: Sequence[Row]) -> Cells:
    """Lay out rows: every key a column; `X_low` and `X_high` stand with their X."""
    keys = dict.fromkeys(key for row in rows for key in row if key not in _UNSHOWN)
    names = [key for key in keys if key.removesuffix("_low").removesuffix("_high") == key]
    head = [_column(key).label for key in names]
    return [head, *([_cell(row, key) for key in names] for row in rows)]


def _column(key: str) -> Column:
    return COLUMNS.get(key, Column(key.replace("_", " ")))


def _cell(row: Row, key: str) -> str:
    column = _column(key)
    text = number(row.get(key), column)
    low, high = (row.get(f"{key}_{end}") for end in ("low", "high"))
    if low is None or high is None:
        return text
    return f"{text} [{number(low, column)}, {number(high, column)}]"


def _pivot(
    rows: Sequence[Row],
    heads: Sequence[str],
    place: Callable[[Row], tuple[tuple[str, ...], str]],
    cell: Callable[[Row], str],
) -> Cells:
    """Lay out rows in two dimensions: `place` returns the first cells of a line and the column."""
    places = [place(row) for row in rows]
    columns = list(dict.fromkeys(column for _, column in places))
    cells = {where: cell(row) for where, row in zip(places, rows, strict=True)}
    lines = dict.fromkeys(line for line, _ in places)
    return [
        [*heads, *(COLUMNS.get(column, Column(column)).label for column in columns)],
        *([*line, *(cells.get((line, column), "") for column in columns)] for line in lines),
    ]


def _folds(rows: Sequence[Row]) -> Cells:
    peers = {_fold(row): row for row in rows if row["method"] != OURS}

    def cell(row: Row) -> str:
        column = Column("", ".4f" if "^" in row["metric"] else ".3f")
        ours, peer = number(row["value"], column), peers.get(_fold(row))
        if peer is None:
            return ours
        theirs = number(peer["value"], column)
        if row["value"] != peer["value"]:
            less = row["value"] < peer["value"]
            if less == (row["metric"] in _LESS_IS_BETTER):
                ours = f"**{ours}**"
            else:
                theirs = f"**{theirs}**"
        return f"{ours} ({peer['method']} {theirs})"

    own = [row for row in rows if row["method"] == OURS]
    return _pivot(own, ("data", "folds"), lambda row: (_fold(row)[:2], row["metric"]), cell)


def _fold(row: Row) -> tuple[str, str, str]:
    return row["data"], row["split"], row["metric"]


def _agreement(rows: Sequence[Row]) -> Cells:
    rows = [row for row in rows if row.get("sites") == "all" and "^" in row["metric"]]

    def place(row: Row) -> tuple[tuple[str, ...], str]:
        metric, _, beta = row["metric"].partition("^")
        return (f"`{metric}^beta`",), f"beta {beta}"

    cells = _pivot(rows, ("metric",), place, lambda row: f"{row['picked']:.0f}")
    pairs, chance = rows[0]["cells"], rows[0]["chance"]
    cells[0][0] = f"picked of {pairs}, chance {chance * pairs:.0f}"
    return cells


_PIVOTS = {"folds": _folds, "agreement": _agreement}
