"""The pages of reports, from hand-made records: what they say, what they escape, how they look."""

import json

import pytest

from raysys.reports.html import backtest, charts, comparison, evaluation, pages, sweep
from raysys.reports.html.content import BAD, EVEN, GOOD
from raysys.reports.html.verdicts import verdict
from tests.support.browsers import chromium
from tests.support.pages import checked
from tests.support.sweeps import LEAD, sweep_record

ODD = "<img src=x onerror=alert(1)> & $x^2$ 漢字"
NAMES = ("model", "popularity", "ease")


def entry(mean, half=0.002):
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half}


def evaluation_record(*, gains=(0.02, 0.01), further=True):
    """The model and two baselines, with all that an evaluation may hold."""
    methods = {}
    for place, name in enumerate(NAMES):
        metrics = {m: entry(0.2 - 0.02 * place) for m in (LEAD, "recall@20", "ndcg@100")}
        metrics |= {"coverage@20": {"mean": 0.4, "ci_low": None, "ci_high": None}}
        slices = {f"recall@20|popularity={d}": entry(0.3 / d) for d in range(1, 11)}
        slices |= {f"recall@20|history={h}": entry(0.1) for h in ("1-4", "5-9", "10-19")}
        slices |= {f"recall@20|level={level}": entry(0.1) for level in ("1", ODD)}
        methods[name] = {"metrics": metrics, "slices": slices}
    if further:
        bins = [
            {"low": a / 4, "high": (a + 1) / 4, "predicted": a / 4 + 0.1, "observed": a / 4, "n": 9}
            for a in range(4)
        ]
        empty = {"low": 0.9, "high": 1.0, "predicted": None, "observed": None, "n": 0}
        methods["model"] |= {
            "calibration": {"consume": [*bins, empty], "levels": {"1": bins, ODD: bins}},
            "confusion": {"levels": ["1", ODD], "counts": [[30, 10], [20, 40]]},
            "coverage": {"items_in_lists@20": 0.375, "gini@20": 0.875},
        }
    differences = {
        name: {LEAD: entry(gain), "recall@20": entry(gain)}
        for name, gain in zip(NAMES[1:], gains, strict=True)
    }
    return {
        "report_id": "0123",
        "period": "test",
        "via": "model",
        "replicates": 100,
        "build_ids": {"autoencoder": "ab"},
        "baseline_ids": {"ease": "cd"},
        "evaluated": {"rows": 100, "targets": 300},
        "dropped": {},
        "baselines_left_out": {"rdlae": ODD},
        "methods": methods,
        "differences": differences,
    }


def shown(page):
    """Return the page, its text checked to be no markup."""
    html = pages.render(page)
    assert "<img" not in html
    assert html == pages.render(page)
    return checked(html)


def comparison_record(difference=0.01, metric=LEAD):
    value = {"mean": 0.2, "other": 0.2 - difference, "better": 0.5, "worse": 0.25} | {
        "difference": difference,
        "ci_low": difference - 0.005,
        "ci_high": difference + 0.005,
    }
    names = [
        metric,
        *(f"recall@20^{b}" for b in (0, 0.3, 0.5)),
        *(f"recall@{k}" for k in (5, 9, 30)),
    ]
    return {
        "run": f"runs/{ODD}",
        "other": "runs/b",
        "via": "model",
        "against": "model",
        "period": "test",
        "common_users": 1234,
        "build_ids": {"autoencoder": "ab"},
        "other_build_ids": {"autoencoder": "cd"},
        "comparison": dict.fromkeys(names, value),
    }


def backtest_record():
    windows = [
        {"number": n, "val": 1e9, "test": 1e9 + n * 1e7, "end": 1e9 + (n + 1) * 1e7}
        | {"evaluated": {"rows": 10}, "metrics": {"recall@20": entry(0.2 + 0.01 * n)}}
        | {"baselines": {"ease": {"recall@20": entry(0.19)}}}
        for n in (1, 2)
    ]
    gap = {"baselines": ["ease", "ease"], "mean": 0.19, "difference": 0.025} | {
        "ci_low": 0.01,
        "ci_high": 0.04,
        "ahead": 2,
        "differences": [0.02, 0.03],
    }
    return {
        "backtest": windows,
        "metrics": {"recall@20": entry(0.215)},
        "differences": {"recall@20": {"model": 0.215, "chosen": gap, "on_mean": gap}},
        "left_out": [{"number": 3, "reason": ODD}],
    }


def test_an_evaluation_shows_what_it_holds_and_leaves_out_what_it_does_not():
    page = shown(evaluation.page_of(evaluation_record(), run=ODD, name="evaluate-test-model"))
    every = ["Against the baselines", "Where the recall comes from", "Coverage", "Calibration"]
    assert page.sections == [*every, "Rating confusion", "Settings and builds"]
    assert page.words.count(ODD) > 8
    assert "37.5 %" in page.words
    assert "the true one in 70.0 %" in page.words
    plain = shown(
        evaluation.page_of(evaluation_record(further=False), run="r", name="evaluate-test-model")
    )
    assert "Calibration" not in plain.sections
    assert "40.0 %" in plain.words  # coverage as a metric
    bare = evaluation_record(further=False) | {"differences": {}}
    assert "raysys evaluate period=test via=model run=r" in shown(
        evaluation.page_of(bare, run="r", name="n")
    ).words  # fmt: skip


@pytest.mark.parametrize(
    ("gains", "tone", "words"),
    [
        ((0.02, 0.01), GOOD, "The model leads every baseline in recall@20^0.2: +0.0100"),
        ((0.02, 0.001), EVEN, "The model and ease do not differ beyond noise in recall@20^0.2"),
        ((0.02, -0.01), BAD, "ease leads the model in recall@20^0.2: +0.0100 (+0.0080 to +0.0120)"),
    ],
)
def test_the_verdict_names_the_nearest_baseline(gains, tone, words):
    found = verdict(evaluation_record(gains=gains))
    assert (found.tone, found.metric) == (tone, LEAD)
    assert found.text.startswith(words)


def test_errors_are_better_where_they_are_lower():
    record = evaluation_record()
    record["differences"] = {"bias": {"rmse": entry(-0.1)}}
    assert verdict(record).text == (
        "The model leads every baseline in rmse: +0.1000 (+0.0980 to +0.1020) over bias"
    )
    record["differences"] = {}
    assert "no baseline beside it" in verdict(record).text


def test_comparisons_say_which_side_is_better():
    page = comparison.page_of(comparison_record())
    assert page.verdict.startswith(f"Model of {ODD.rpartition('/')[2]} is better than model of b")
    words = shown(page).words
    assert "+0.0050 to +0.0150" in words
    assert "Difference in recall@k" in words
    assert comparison.page_of(comparison_record(0.001)).tone == EVEN
    assert comparison.page_of(comparison_record(0.01, "rmse")).tone in (BAD, GOOD)
    worse = comparison_record(0.01, "rmse")
    worse["comparison"] = {"rmse": worse["comparison"]["rmse"]}
    assert "is worse than" in comparison.page_of(worse).verdict


def test_a_backtest_says_whether_the_lead_lasts():
    page = shown(backtest.page_of(backtest_record(), run=ODD))
    assert "Over time the model leads" in page.words
    assert "ahead in 2 of 2 windows" in page.words
    assert f"Window 3 is left out: {ODD}" in page.words
    one = backtest_record()
    one["differences"]["recall@20"]["chosen"] |= {"ci_low": None, "ci_high": None}
    assert backtest.page_of(one, run="r").tone == EVEN


def test_a_sweep_shows_its_verdict_and_every_trial():
    record = json.loads(json.dumps(sweep_record()))
    page = shown(sweep.page_of(record, run=ODD))
    best = record["best"]
    assert f"Trial {best} is better than the defaults in {LEAD}: +0.00" in page.words
    for words in ("stopped early", "measured by an earlier sweep", "<b>no</b> loss is finite & $x"):
        assert words in page.words
    assert "Front" not in page.sections
    html = pages.render(sweep.page_of(record, run="r"))
    assert html.count('<th scope="row" class="words">') > len(record["trials"])


def test_a_sweep_of_several_objectives_has_a_front():
    objectives = ((LEAD, "max"), ("bytes", "min"))
    record = sweep_record(objectives=objectives, finalists=False)
    page = shown(sweep.page_of(record, run="r"))
    assert "Front" in page.sections
    assert "noise is not ruled out" in page.words
    assert "random search" in page.words


def test_a_long_sweep_stays_a_small_page():
    page = shown(sweep.page_of(sweep_record(n_trials=400), run="r"))
    assert "The best 150 of 399 trials are drawn." in page.words  # one failed


@pytest.mark.parametrize("n_trials", [0, 1])
def test_a_sweep_that_has_just_begun_has_a_page(n_trials):
    record = sweep_record(n_trials=1, finalists=False) | {"state": "running", "importance": {}}
    record |= {"trials": record["trials"][:n_trials], "best": None, "totals": {}}
    page = shown(sweep.page_of(record, run="r"))
    assert "No trial has finished" in page.words


def test_drawings_follow_the_page_and_never_share_an_id():
    def drawn(key):
        series = [charts.Series([(1, 2), (2, 3)], n, band=[(1, 2), (2, 4)]) for n in range(2)]
        axes = charts.Axes(ODD, "$y$", ticks=["$1", ODD])
        return charts.points(key, "t", series, axes, "d").wide

    one, two = drawn("a"), drawn("b")
    assert one == drawn("a")
    assert one.replace("a-", "b-") != one
    checked(one + two)
    assert ">d</desc>" in one
    assert "$y$" in one  # text, not mathematics
    assert "漢字" in one
    for colour in ("currentColor", "var(--series-1)", "var(--series-2)"):
        assert colour in one
    assert "#0" not in one.replace('href="#', "")


def test_keys_of_a_uri_stay_out_of_pages():
    url = "s3://user:secret@bucket"
    assert pages.name_of_run(f"{url}/runs/first/?region=x") == "first"
    assert "secret" not in pages.name_of_run(url) + pages.command("evaluate", url)


def test_a_damaged_part_says_so():
    record = evaluation_record()
    record["methods"]["model"]["confusion"]["counts"] = 3
    page = shown(evaluation.page_of(record, run="r", name="n"))
    assert "This part cannot be shown" in page.words
    assert "Coverage" in page.sections


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An evaluation and a sweep of two objectives, as files."""
    folder = tmp_path_factory.mktemp("pages")
    objectives = ((LEAD, "max"), ("bytes", "min"))
    made = {
        "evaluation": evaluation.page_of(evaluation_record(), run=ODD, name="n"),
        "sweep": sweep.page_of(sweep_record(n_trials=12, objectives=objectives), run=ODD),
    }
    for name, page in made.items():
        (folder / f"{name}.html").write_text(pages.render(page))
    return {name: folder / f"{name}.html" for name in made}


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("sweep", 400, "dark"), ("evaluation", 1280, "light")]
)
def test_people_can_read_it(browser, files, name, width, scheme):
    """It fits the screen, asks nobody, and axe finds nothing, with every table unfolded."""
    base = pytest.importorskip("axe_playwright_python.base", reason="no axe: pip install -e .[dev]")
    size = {"width": width, "height": 800}
    context = browser.new_context(viewport=size, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(files[name].as_uri())
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    drawn = page.locator(".panel svg:visible").count()
    assert drawn == page.locator(".panel").count() > 3
    page.evaluate(base.AXE_FILE_PATH.read_text())
    found = page.evaluate("async () => (await axe.run()).violations")
    assert [(each["id"], each["impact"]) for each in found] == []
    context.close()
