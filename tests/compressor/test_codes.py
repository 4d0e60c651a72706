import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.compressor.codes import Codes, truncated
from raysys.errors import ConfigError, DataError
from raysys.store.builds import Workspace
from tests.support.planting import Folder, plant_codes, plant_embeddings


def planted(n_items=300, n_atoms=64, dim=24, n_active=6, seed=0):
    """Random unit dictionary and codes whose values fall with the position."""
    rng = np.random.default_rng(seed)
    dictionary = rng.normal(size=(n_atoms, dim)).astype(np.float32)
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    atoms = np.argsort(rng.random((n_items, n_atoms)), axis=1)[:, :n_active]
    values = rng.choice([-1, 1], atoms.shape) * rng.uniform(0.5, 1.5, atoms.shape)
    values = (values / np.sqrt(1 + np.arange(n_active))).astype(np.float32)
    dense = np.einsum("ij,ijd->id", values, dictionary[atoms])
    return dictionary, atoms, values, dense.astype(np.float32)


def cosine(a, b):
    return np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize(("value_bits", "floor"), [(4, 0.99), (8, 0.9999), (16, 0.999999)])
def test_reconstruction_is_close_and_of_unit_length(value_bits, floor):
    dictionary, atoms, values, dense = planted()
    codes = Codes.pack(atoms, values, dictionary=dictionary, value_bits=value_bits)
    back = codes.decode(dictionary)
    assert cosine(back, dense).min() > floor - 0.01
    assert cosine(back, dense).mean() > floor
    np.testing.assert_allclose(np.linalg.norm(back, axis=1), 1, atol=2e-3)


@pytest.mark.parametrize("value_bits", [4, 8, 16])
def test_inner_product_codes_carry_the_norm(value_bits):
    dictionary, atoms, values, dense = planted()
    dense *= np.linspace(0.01, 30, len(dense), dtype=np.float32)[:, None]
    codes = Codes.pack(
        atoms,
        values,
        dictionary=dictionary,
        vectors=dense,
        similarity="inner_product",
        value_bits=value_bits,
    )
    error = np.linalg.norm(codes.decode(dictionary) - dense, axis=1)
    assert np.all(error < 0.2 * np.linalg.norm(dense, axis=1))
    fitted = np.sum(codes.decode(dictionary) * (codes.decode(dictionary) - dense), 1)
    assert np.all(np.abs(fitted) < 2e-3 * np.sum(dense**2, 1))  # least squares: orthogonal


def test_levels_chosen_jointly_beat_rounding_each_value():
    dictionary, atoms, values, dense = planted(n_items=1000, n_atoms=40, dim=12)
    codes = Codes.pack(atoms, values, dictionary=dictionary, vectors=dense)
    rms = np.sqrt(np.mean(values**2, axis=1, keepdims=True))
    gap = np.abs((values / rms)[:, :, None] - codes.codebook[None])
    alone = np.take_along_axis(codes.codebook[None], np.argmin(gap, 2)[:, :, None], 2)[:, :, 0]
    rounded = np.einsum("ij,ijd->id", alone, dictionary[atoms])
    loss = 1 - cosine(codes.decode(dictionary), dense).mean()
    assert loss < 0.8 * (1 - cosine(rounded, dense).mean())


@given(
    st.integers(1, 40),
    st.integers(1, 8),
    st.sampled_from([4, 8, 16]),
    st.sampled_from(["cosine", "inner_product"]),
    st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_packing_round_trips_within_the_step(n_items, n_active, value_bits, similarity, seed):
    dictionary, atoms, values, _ = planted(n_items, 32, 48, n_active, seed)
    codes = Codes.pack(
        atoms, values, dictionary=dictionary, similarity=similarity, value_bits=value_bits
    )
    back_atoms, back = codes.atoms_and_values(np.arange(n_items))
    np.testing.assert_array_equal(back_atoms, atoms)
    # A second trip changes nothing but the last bits: what is stored is a fixed point.
    again = Codes.pack(
        back_atoms,
        back,
        dictionary=dictionary,
        similarity=similarity,
        value_bits=value_bits,
        codebook=codes.codebook if value_bits == 4 else None,
    )
    ratio = np.sqrt(np.mean(back**2, 1) / np.mean(values**2, 1))[:, None]
    step = {4: 1.2, 8: 0.02, 16: 2e-3}[value_bits] * np.abs(values).max(1, keepdims=True)
    assert np.all(np.abs(back / ratio - values) <= step)
    third = again.atoms_and_values(np.arange(n_items))[1]
    np.testing.assert_allclose(third, back, rtol=0, atol=float(step.max() * ratio.max()))


def test_wide_dictionaries_use_sixteen_bit_atoms():
    rng = np.random.default_rng(1)
    dictionary = rng.normal(size=(5000, 8)).astype(np.float32)
    atoms = rng.integers(4096, 5000, (20, 3))
    codes = Codes.pack(atoms, rng.normal(size=(20, 3)), dictionary=dictionary)
    assert codes.packing == "float16"
    np.testing.assert_array_equal(codes.atoms_and_values(np.arange(20))[0], atoms)


def test_bytes_per_item():
    dictionary, atoms, values, dense = planted()
    sizes = {
        bits: Codes.pack(atoms, values, dictionary=dictionary, value_bits=bits).bytes_per_item
        for bits in (4, 8, 16)
    }
    assert sizes == {4: 2 * 6 + 2, 8: 3 * 6 + 2, 16: 4 * 6 + 2}
    assert Codes.pack_dense(dense, similarity="cosine").bytes_per_item == 24 + 2


@pytest.mark.parametrize("similarity", ["cosine", "inner_product"])
def test_dense_codes(similarity):
    rng = np.random.default_rng(2)
    dense = rng.normal(size=(50, 16)).astype(np.float32)
    dense[7] = 0
    codes = Codes.pack_dense(dense, similarity=similarity)
    wanted = dense
    if similarity == "cosine":
        norm = np.linalg.norm(dense, axis=1, keepdims=True)
        wanted = np.divide(dense, norm, out=np.zeros_like(dense), where=norm > 0)
    np.testing.assert_allclose(codes.decode(dense), wanted, atol=0.02)


def test_truncation_fits_values_again():
    dictionary, atoms, values, dense = planted(n_atoms=40, dim=12)
    codes = Codes.pack(atoms, values, dictionary=dictionary, vectors=dense)
    short = truncated(codes, 3, dictionary=dictionary, similarity="cosine")
    assert short.n_active == 3
    assert short.bytes_per_item == 8
    plain = Codes.pack(atoms[:, :3], values[:, :3], dictionary=dictionary)
    assert (
        cosine(short.decode(dictionary), dense).mean()
        > cosine(plain.decode(dictionary), dense).mean()
    )
    with pytest.raises(ConfigError, match="n_active=7"):
        truncated(codes, 7, dictionary=dictionary, similarity="cosine")


def test_a_value_that_is_not_finite_names_its_row():
    dictionary, atoms, values, dense = planted()
    values[41, 2] = np.nan
    with pytest.raises(DataError, match="row 41"):
        Codes.pack(atoms, values, dictionary=dictionary)
    dense[17, 0] = np.inf
    with pytest.raises(DataError, match="row 17"):
        Codes.pack_dense(dense, similarity="cosine")


def test_zero_rows_score_zero():
    dictionary, atoms, values, dense = planted()
    values[5], dense[5] = 0, 0
    for similarity in ("cosine", "inner_product"):
        codes = Codes.pack(
            atoms, values, dictionary=dictionary, vectors=dense, similarity=similarity
        )
        assert np.all(codes.decode(dictionary, np.array([5])) == 0)


def test_saved_codes_open_memory_mapped(tmp_path):
    dictionary, atoms, values, dense = planted()
    codes = Codes.pack(atoms, values, dictionary=dictionary)
    workspace = Workspace(str(tmp_path))
    embeddings = plant_embeddings(workspace, dense)
    back = Codes.open(plant_codes(workspace, codes, dictionary, embeddings).codes)
    np.testing.assert_array_equal(back.decode(dictionary), codes.decode(dictionary))
    owner = back.entries
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, mmap.mmap)


def test_packing_in_chunks_changes_nothing(monkeypatch):
    dictionary, atoms, values, dense = planted()
    whole = Codes.pack(atoms, values, dictionary=dictionary, vectors=dense)
    monkeypatch.setattr("raysys.compressor.codes._CHUNK_ROWS", 77)
    parts = Codes.pack(atoms, values, dictionary=dictionary, vectors=dense)
    np.testing.assert_array_equal(parts.entries, whole.entries)
    np.testing.assert_array_equal(parts.scale, whole.scale)


@pytest.mark.parametrize("value_bits", [4, 16])
def test_truncation_in_chunks_and_into_files_changes_nothing(tmp_path, monkeypatch, value_bits):
    dictionary, atoms, values, dense = planted()
    codes = Codes.pack(atoms, values, dictionary=dictionary, vectors=dense, value_bits=value_bits)
    settings = {"dictionary": dictionary, "similarity": "cosine"}
    whole = truncated(codes, 3, **settings).arrays()
    monkeypatch.setattr("raysys.compressor.codes._CHUNK_ROWS", 77)
    monkeypatch.setattr("raysys.data.arrays.BLOCK_ROWS", 50)
    draft = Folder(tmp_path)
    parts = truncated(codes, 3, **settings, draft=draft).arrays()
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array)
        np.testing.assert_array_equal(np.load(draft.path(f"{name}.npy")), array)
        assert parts[name].dtype == array.dtype
