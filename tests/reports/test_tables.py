from raysys.reports.tables import aligned, of_records, table


def test_the_first_column_stands_left_the_others_right():
    assert aligned([["", "recall"], ["ease", "0.2"]]) == ["      recall", "ease     0.2"]


def test_columns_stand_left_where_asked_and_lines_end_with_their_last_cell():
    rows = [["rank", "title"], ["1", "Heat"], ["10", ""]]
    assert aligned(rows, left=[1]) == ["rank  title", "   1  Heat", "  10"]


def test_records_become_cells_and_what_they_lack_a_dash():
    records = [
        {"engine": "flat", "p50_ms": 0.123456, "n": 3},
        {"engine": "ivf", "parts": [1, 2]},
    ]
    columns = ["engine", "p50_ms", "n", "parts"]
    assert of_records(records, columns) == [
        columns,
        ["flat", "0.1235", "3", "-"],
        ["ivf", "-", "-", "[1, 2]"],
    ]


def test_a_metric_stands_beside_half_its_interval():
    methods = {
        "model": {"recall@20": {"mean": 0.5, "ci_low": 0.4, "ci_high": 0.6}},
        "ease": {"recall@20": {"mean": 0.25, "ci_low": None, "ci_high": None}},
    }
    assert table(methods) == [
        "            recall@20",
        "model  0.5000 ±0.1000",
        "ease           0.2500",
    ]
