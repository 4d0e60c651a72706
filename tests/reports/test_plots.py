import dataclasses

import pytest

from raysys.reports.plots import Line, Panel, draw, drawn_from, fingerprint, plain

LINES = [Line("ours", [(10, 0.5), (1000, 0.25)]), Line("peer", [(10, 1.0)], 1, "--")]
PANEL = Panel("title", "items", "ms", LINES, log="xy")


def drawn(panels, path):
    draw(panels, path)
    return path


def test_a_plot_is_drawn_twice_with_the_same_bytes(tmp_path):
    first, second = (drawn([PANEL], tmp_path / name) for name in ("a.svg", "b.svg"))
    assert first.read_bytes() == second.read_bytes()
    assert drawn_from(first) == fingerprint([PANEL])
    assert drawn([PANEL], tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "change",
    [
        {"title": "other"},
        {"log": "x"},
        {"lines": [LINES[0]]},
        {"lines": [dataclasses.replace(LINES[0], points=[(10, 0.5), (1000, 0.26)]), LINES[1]]},
    ],
)
def test_a_plot_of_other_figures_carries_another_fingerprint(tmp_path, change):
    path = drawn([PANEL], tmp_path / "a.svg")
    assert drawn_from(path) != fingerprint([dataclasses.replace(PANEL, **change)])


def test_points_that_equal_each_other_have_one_fingerprint():
    lists = dataclasses.replace(LINES[0], points=[[10, 0.5], [1000, 0.25]])
    assert fingerprint([PANEL]) == fingerprint(
        [dataclasses.replace(PANEL, lines=[lists, LINES[1]])]
    )


def test_other_files_carry_none(tmp_path):
    (tmp_path / "x.svg").write_text("<svg/>")
    assert drawn_from(tmp_path / "x.svg") is None


def test_an_axis_is_logarithmic_or_begins_at_zero(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    for change in ({}, {"log": "x"}, {"log": "x", "names": ["flat", "ivf"]}):
        draw([dataclasses.replace(PANEL, **change)], tmp_path / "a.svg")
    [log], [half], [named] = (figure.axes for figure in figures)
    assert (log.get_xscale(), log.get_yscale()) == ("log", "log")
    assert (half.get_xscale(), half.get_ylim()[0]) == ("log", 0)
    assert [label.get_text() for label in named.get_yticklabels()] == ["flat", "ivf"]


def test_an_axis_reaches_below_zero_where_a_band_does(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    draw([Panel("", "x", "y", [Line("", [(1, 1)], band=[(-2, 3)])])], tmp_path / "a.svg")
    assert figures[0].axes[0].get_ylim() == pytest.approx((-2.1, 3.15))


def test_panels_share_axes_that_hold_the_points_of_all(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    small = Panel("", "x", "y", [Line("", [(1, 1)])])
    large = Panel("", "x", "y", [Line("", [(1, 4)], band=[(3, 8)])])
    draw([small, large], tmp_path / "a.svg")
    assert [axis.get_ylim()[1] for axis in figures[0].axes] == [pytest.approx(8.4)] * 2


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.05, "0.05"), (20, "20"), (3000, "3 k"), (62_666, "62.67 k"), (1e6, "1 M"), (0, "0")],
)
def test_ticks_are_written_in_a_few_letters(value, text):
    assert plain(value) == text
