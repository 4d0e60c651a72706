"""How a report of an experiment is shown: its tables, its page and its plot.

<run>/reports/experiment-<name>.md                          the page
<run>/reports/experiment-<name>/<report_id>/difference.svg  the sequence of every arm
"""

from __future__ import annotations

from collections.abc import Sequence

from raysys.evaluation.anytime import BURN_IN, SPLIT_ALPHA
from raysys.evaluation.experiment import Assessment, Comparison
from raysys.evaluation.looks import Mean
from raysys.reports.plots import Line, Panel
from raysys.reports.tables import aligned, markdown

PLOT = "difference.svg"


def arm_cells(found: Assessment) -> list[list[str]]:
    """Return the cells of the table of arms."""
    head = ["arm", "weight", "users", "known", "impressions", "conversions"]
    rows = [[*head, "outcome a user", "conversions an impression"]]
    for arm in found.arms:
        rows.append(
            [
                arm.name,
                f"{arm.weight:g}",
                *(f"{n:,}" for n in (arm.users, arm.mature, arm.impressions, arm.conversions)),
                _mean(arm.outcome),
                _mean(arm.per_impression),
            ]
        )
    return rows


def comparison_cells(found: Assessment) -> list[list[str]]:
    """Return the cells of the table of comparisons with the control."""
    rows = [
        [
            f"minus {found.control}",
            "users",
            "difference",
            "at any time",
            "p at any time",
            "read once",
            "lift, read once",
            "an impression, read once",
        ]
    ]
    for each in found.comparisons:
        rows.append(
            [
                each.arm,
                f"{each.users:,}",
                _signed(each.effect),
                _span(each.low, each.high),
                f"{each.p_value:.2g}",
                _span(each.outcome.low, each.outcome.high),
                _lift(each),
                _span(each.per_impression.low, each.per_impression.high),
            ]
        )
    return rows


def split_line(found: Assessment) -> str:
    """Say whether users are split as configured."""
    if found.split is None:
        return "Split of users: fewer than two arms have users."
    expected = ", ".join(
        f"{arm.name} {arm.users:,} of {due:,.0f}"
        for arm, due in zip(
            sorted((a for a in found.arms if a.users), key=lambda a: a.name),
            found.split.expected,
            strict=True,
        )
    )
    return (
        f"Split of users: {expected} expected; p = {found.split.p_value:.2g} at any time (trusted "
        f"above {SPLIT_ALPHA:g}), {found.split.chi_square:.2g} by chi-square, read once."
    )


def lines(found: Assessment, notes: Sequence[str]) -> list[str]:
    """Return what the log says."""
    text = aligned(arm_cells(found))
    if found.comparisons:
        text += aligned(comparison_cells(found))
    return [*text, split_line(found), *notes, found.verdict]


def page(found: Assessment, title: str, plot: str | None, notes: Sequence[str]) -> str:
    """Return the report as a Markdown page.

    Args:
        found: what the experiment says.
        title: of the page.
        plot: path of the plot as seen from the page; None: there is none.
        notes: sentences below the tables.
    """
    parts = [f"# {title}", f"**{found.verdict}**", "\n".join(markdown(arm_cells(found)))]
    if found.comparisons:
        parts.append("\n".join(markdown(comparison_cells(found))))
    parts.append(split_line(found))
    if plot is not None:
        parts.append(f"![Difference to {found.control} with its confidence sequence]({plot})")
    parts += [f"- {note}" for note in notes]
    return "\n\n".join(parts) + "\n"


def panels(found: Assessment) -> list[Panel]:
    """Return the plot: the sequence of every arm over time, where there is more than a point."""
    return [
        Panel(
            title=f"{each.arm} minus {found.control}",
            x="days since the experiment began",
            y="difference in the outcome",
            lines=[
                Line(
                    "",
                    [(step.days, step.effect) for step in each.steps],
                    number,
                    band=[(step.low, step.high) for step in each.steps],
                ),
                Line("", [(step.days, 0.0) for step in each.steps], None),
            ],
        )
        for number, each in enumerate(found.comparisons)
        if len(each.steps) > 1
    ]


def method_notes(found: Assessment) -> list[str]:
    """Return what a reader of the tables needs to know of their intervals."""
    level = 1 - found.alpha / max(1, len(found.comparisons))
    notes = [
        "`At any time` may be read and acted upon as often as you like; `read once` holds only at "
        f"a time that was set before. The interval at any time begins at {BURN_IN} users."
    ]
    if len(found.comparisons) > 1:
        notes.append(
            f"Every arm is compared with {found.control} on its own: intervals cover with "
            f"{level:.4g} each, and p-values are multiplied by {len(found.comparisons)} "
            "(Bonferroni)."
        )
    return notes


def _mean(found: Mean) -> str:
    if found.value is None:
        return "-"
    return f"{found.value:.4f} ({_span(found.low, found.high, '.4f')})"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _span(low: float | None, high: float | None, form: str = "+.4f") -> str:
    return "-" if low is None or high is None else f"{low:{form}}..{high:{form}}"


def _lift(found: Comparison) -> str:
    if found.outcome.lift is None:
        return "-"
    span = _span(found.outcome.lift_low, found.outcome.lift_high, "+.1%")
    return f"{found.outcome.lift:+.1%} ({span})"
