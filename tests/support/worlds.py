"""A planted world of items whose neighbours are known, and an index of each kind over it."""

import numpy as np

from raysys.compressor.codes import Codes
from raysys.index.build import IndexParams, build_index
from raysys.index.index import INDEX_KINDS
from raysys.index.recall import sample_probes, set_efforts

N_GROUPS, PER_GROUP, DIM = 40, 50, 32
N_ITEMS = N_GROUPS * PER_GROUP


def planted_world(similarity, seed=0):
    """Groups of items around a direction each; items 7 and 8 are duplicates."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(N_GROUPS, DIM))
    vectors = np.repeat(centres, PER_GROUP, 0) + 0.3 * rng.normal(size=(N_ITEMS, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[8] = vectors[7]
    n_bias = 0
    if similarity == "inner_product":
        vectors *= rng.uniform(0.8, 1.2, (N_ITEMS, 1))
        vectors[8] = vectors[7]
        n_bias = 2
    bias = 0.05 * rng.normal(size=(N_ITEMS, n_bias)).astype(np.float32)
    bias[8] = bias[7]
    return vectors.astype(np.float32), bias


def pursuit(vectors, dictionary, n_active):
    """Plain matching pursuit, enough for a test."""
    rest, atoms, values = vectors.copy(), [], []
    for _ in range(n_active):
        product = rest @ dictionary.T
        best = np.abs(product).argmax(1)
        value = np.take_along_axis(product, best[:, None], 1)
        rest -= value * dictionary[best]
        atoms.append(best)
        values.append(value[:, 0])
    return np.stack(atoms, 1), np.stack(values, 1)


def make_index(kind, similarity, *, rows=None, seed=0, **params):
    vectors, bias = planted_world(similarity)
    rows = np.arange(N_ITEMS) if rows is None else rows
    vectors, bias = vectors[rows], bias[rows]
    rng = np.random.default_rng(1)
    dictionary = rng.normal(size=(128, DIM)).astype(np.float32)
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    atoms, values = pursuit(vectors, dictionary, 12)
    codes = Codes.pack(atoms, values, dictionary=dictionary, vectors=vectors, similarity=similarity)
    settings = IndexParams(kind=kind, **params)
    index = build_index(codes, dictionary, bias, similarity=similarity, params=settings, seed=seed)
    probes = sample_probes(vectors, bias.shape[1], similarity=similarity, sample=60, seed=seed)
    set_efforts(index, probes, params=settings)
    return index


CASES = [(kind, similarity) for kind in INDEX_KINDS for similarity in ("cosine", "inner_product")]
