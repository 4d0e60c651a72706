"""The file of names: proposed, corrected, proposed again, and broken."""

import logging

import numpy as np
import pyarrow as pa
import pytest

from raysys.commands.atoms import AtomsConfig, atoms
from raysys.config import load
from raysys.errors import DataError
from raysys.search.atom_names import AtomName, path_of, proposed_again, read_names, write_names
from raysys.search.atom_proposals import proposals
from raysys.search.search import Search
from raysys.store.builds import Workspace
from tests.support.runs import model_run


@pytest.fixture
def run(tmp_path):
    """A run whose codes have 48 atoms."""
    workspace, _ = model_run(tmp_path / "run", n_items=300, sparse=True)
    return workspace


def compressor_of(workspace):
    return workspace.current("compressor")


def path(workspace):
    return workspace.storage.root + "/" + path_of(compressor_of(workspace))


def propose(workspace):
    return atoms(load(AtomsConfig, [f"run={workspace.run}", "names=propose"]))


def edit(workspace, old, new):
    with open(path(workspace), encoding="utf-8") as file:
        text = file.read()
    assert old in text
    with open(path(workspace), "w", encoding="utf-8") as file:
        file.write(text.replace(old, new, 1))


def line_of(workspace, atom):
    with open(path(workspace), encoding="utf-8") as file:
        return next(line for line in file.read().splitlines() if line.startswith(f"  {atom}: "))


def test_a_correction_stays_and_is_what_a_service_shows(run):
    propose(run)
    first = read_names(compressor_of(run), n_atoms=48)
    assert first
    assert not any(entry.is_corrected for entry in first.values())
    edit(run, line_of(run, 3), '  3: {name: "Çold, slow: films"}')
    edit(run, line_of(run, 4), f'  4: {{name: , proposed: "{first[4].proposed}"}}')
    propose(run)
    names = read_names(compressor_of(run), n_atoms=48)
    assert names[3] == AtomName("Çold, slow: films", first[3].proposed)
    assert names[4].is_corrected
    assert {a: n for a, n in names.items() if a not in (3, 4)} == {
        a: n for a, n in first.items() if a not in (3, 4)
    }
    search = Search.open(run)
    assert search.atoms.name(3) == "Çold, slow: films"
    assert search.atoms.name(4) is None
    assert search.atoms.of(3, 2).name == "Çold, slow: films"
    edit(run, "Çold, slow: films", "Winter")
    assert search.atoms.name(3) == "Çold, slow: films"
    search.atoms.read_names()  # as a reload does
    assert search.atoms.name(3) == "Winter"


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ("  48: {name: X}", r"line \d+: '48' is no atom of this dictionary: 0..47"),
        ("  5: {nam: X}", r"line \d+: atom 5: 'nam' is not accepted"),
        ("  5: {}", r"line \d+: atom 5 has no name"),
        ("  5: [X]", r"line \d+: atom 5 is no mapping"),
        ("  5: {name: [X]}", r"line \d+: atom 5: 'name' is not accepted"),
        ("  4: {name: X}", r"line \d+: atoms: '4' is there twice"),
        ("  5: {name: X", r"is no YAML"),
        ("  5: X", r"line \d+: atom 5 is no mapping"),
    ],
)
def test_a_bad_file_is_named_by_its_line_and_a_service_starts_without_names(
    run, caplog, new, words
):
    propose(run)
    edit(run, line_of(run, 5), new)
    with pytest.raises(DataError, match=words):
        propose(run)
    with caplog.at_level(logging.WARNING):
        assert Search.open(run).atoms.name(6) is None
    assert "atoms have no names" in caplog.text


def test_names_of_another_dictionary_are_never_shown(run):
    propose(run)
    compressor = compressor_of(run)
    edit(run, f"dictionary: {compressor.content_id}", "dictionary: 0123456789abcdef")
    with pytest.raises(DataError, match="dictionary must be"):
        propose(run)
    assert Search.open(run).atoms.name(6) is None


def test_a_run_on_an_object_store_keeps_names_there(s3_bucket, tmp_path):
    run = f"{s3_bucket}/named"
    workspace = Workspace(run, cache_dir=str(tmp_path))
    storage = workspace.storage

    class Compressor:
        content_id = "00ff"

    Compressor.storage = storage
    write_names(Compressor, {2: AtomName("Noir", "Crime")})
    assert read_names(Compressor, n_atoms=3) == {2: AtomName("Noir", "Crime")}


def test_new_proposals_leave_what_a_person_wrote():
    before = {1: AtomName("mine", "a"), 2: AtomName("b", "b"), 3: AtomName("c"), 9: AtomName("d")}
    names = proposed_again(before, {1: "x", 2: "y", 3: "z", 4: "w"})
    assert names == {
        1: AtomName("mine", "x"),
        2: AtomName("y", "y"),
        3: AtomName("c", "z"),
        4: AtomName("w", "w"),
        9: AtomName("d"),
    }


class Planted:
    """Three atoms: of horror, of films whose titles say winter, and of nothing in common."""

    n_items = np.array([5, 4, 2, 0])
    strongest = np.array([[0, 1, 2, 3, 4], [10, 11, 12, 13, -1], [20, 7, -1, -1, -1], [-1] * 5])
    values = np.where(strongest >= 0, 1.0 / (1 + np.arange(5)), 0).astype(np.float32)


def test_names_are_what_strongest_items_have_in_common():
    genres = [["Drama", "Horror"] if n < 5 else ["Drama"] for n in range(100)]
    titles = [f"The Winter of {n}" if 10 <= n < 14 else f"The Film {n}" for n in range(100)]
    columns = {"item_id": list(map(str, range(100))), "title": titles, "genres": genres}
    table = pa.table(columns | {"n_fit": list(range(100))})
    assert proposals(Planted, table) == {0: "Horror", 1: "Winter", 2: "The Film 20"}
