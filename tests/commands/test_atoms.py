"""The atoms command on a build that was written by hand."""

import numpy as np
import pytest

from raysys.commands.atoms import AtomsConfig, atoms
from raysys.compressor.codes import Codes
from raysys.config import load
from raysys.errors import ConfigError, UnknownItemError
from raysys.store.builds import Workspace
from tests.support.planting import plant_codes, plant_embeddings


@pytest.fixture
def run(tmp_path):
    workspace = Workspace(str(tmp_path / "run"))
    dictionary = np.eye(4, dtype=np.float32)
    held = np.array([[0, 1], [0, 2], [0, 3], [1, 2], [2, 3]])
    values = np.array([[3, 1], [2, 1], [1, 2], [1, 1], [-2, 1]], dtype=np.float32)
    names = [f"i{n}" for n in range(5)]
    items = {"item_id": names, "title": ["Alien", None, "Brazil", "Cube", "Dune"]}
    vectors = np.zeros((5, 4), dtype=np.float32)
    embeddings = plant_embeddings(workspace, vectors, items=items)
    codes = Codes.pack(held, values, dictionary=dictionary, value_bits=16)
    plant_codes(workspace, codes, dictionary, embeddings)
    return workspace.run


def ask(run, *words):
    lines = atoms(load(AtomsConfig, [f"run={run}", *words])).splitlines()
    return [line.split() for line in lines]


def test_strongest_items_of_an_atom(run):
    assert ask(run, "atom=2", "top_k=2") == [
        ["title", "item_id", "value"],
        ["Dune", "i4", "-0.895"],
        ["Cube", "i3", "+0.707"],
    ]


def test_shared_atoms_of_two_items(run):
    header, line = ask(run, "items=[i0,i2]")
    assert header[-3:] == ["i0", "i2", "share"]
    assert line == ["Alien", "|", "i1", "|", "Brazil", "0", "+0.949", "+0.447", "+1.000"]


def test_overview_lists_the_most_used_atom_first(run):
    header, first, *_ = ask(run)
    assert header == ["strongest", "in", "atom", "items"]
    assert first[-2:] == ["0", "3"]


def test_questions_without_an_answer(run):
    with pytest.raises(ConfigError, match="atom=9"):
        ask(run, "atom=9")
    with pytest.raises(UnknownItemError, match="nobody"):
        ask(run, "items=[i0,nobody]")
    with pytest.raises(ConfigError, match="two item_ids"):
        ask(run, "items=[i0]")
    with pytest.raises(ConfigError, match="at a time"):
        ask(run, "items=[i0,i1]", "atom=1")


def test_names_are_proposed_and_corrections_stay(run):
    header, *lines = ask(run, "names=propose")
    assert header == ["atom", "name"]
    assert [line[0] for line in lines] == ["0", "1", "2", "3"]
    assert lines[0][1:] == ["Alien", "proposed"]
    header, first, *_ = ask(run)
    assert header == ["name", "strongest", "in", "atom", "items"]
    assert first[0] == "Alien"
    with pytest.raises(ConfigError, match="names='x'"):
        ask(run, "names=x")
    with pytest.raises(ConfigError, match="one of"):
        ask(run, "names=propose", "atom=1")
