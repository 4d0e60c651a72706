"""Tiny runs on disk with a known right answer, for tests of search, serving and scoring."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from raysys.autoencoder.config import Conv4RecConfig
from raysys.autoencoder.files import Autoencoder
from raysys.autoencoder.linear_form import retrieval_vectors
from raysys.autoencoder.model import Conv4Rec
from raysys.compressor.codes import Codes
from raysys.compressor.embeddings import Embeddings
from raysys.data.cells import Cells
from raysys.data.schema import RatingLevels, default_liked
from raysys.index.index import Index
from raysys.store.builds import Workspace
from tests.support.planting import (
    plant_autoencoder,
    plant_codes,
    plant_embeddings,
    plant_index,
    plant_profiles,
)

STARS = RatingLevels(
    names=("1", "2", "3", "4", "5"),
    values=(1.0, 2.0, 3.0, 4.0, 5.0),
    liked=default_liked([1, 2, 3, 4, 5]),
)
BINS = RatingLevels(
    names=("0.5..40", "40.5..98.5"),
    values=(20.0, 70.0),
    liked=(False, True),
    edges=(40.5,),
    scale=(0.5, 98.5),
)
PRESENCE = RatingLevels(names=("purchase",), values=(None,), liked=(True,))
IDS = ("42", "caffè/latte 1", "a?b#c%2F", "ends/")
ODD_IDS = ("two\nlines\n", "..", ".", " ", "😀", "a/../b", "%2E%2E", "\t\r\n", "x/similar", "&k=1")
ITEM_IDS = dict(enumerate(IDS)) | dict(enumerate(ODD_IDS, start=40))


def item_id(num):
    return ITEM_IDS.get(num, f"item-{num}")


def title(num):
    return None if num == 1 else f"Title {num}"


def items_of(n_items):
    numbers = range(n_items)
    return {
        "item_id": [item_id(num) for num in numbers],
        "title": pa.array([title(num) for num in numbers], pa.string()),
        "zip": [f"{num:04d}" for num in numbers],
        "released": [f"19{60 + num % 40}-01-05" for num in numbers],
        "categories": [[["Books", f"odd{num % 2}"]] for num in numbers],
        "info": [{"a": num} for num in numbers],
    }


def write_embeddings(ws, vectors, bias, *, similarity, inputs):
    return plant_embeddings(
        ws,
        vectors.astype(np.float32),
        bias=bias.astype(np.float32),
        items=items_of(len(vectors)),
        similarity=similarity,
        inputs=inputs,
        source=vectors.tobytes().hex()[:64],
    )


def write_flat_index(ws, embeddings, vectors, *, similarity):
    """Compress to 8 bits per dimension and index without lists: almost the exact ranking."""
    codes = Codes.pack_dense(vectors, similarity=similarity)
    none = np.zeros((0, vectors.shape[1]), dtype=np.float32)
    coded = plant_codes(ws, codes, none, embeddings, similarity=similarity)
    index = Index(
        kind="flat",
        similarity=similarity,
        codes=codes,
        bias=Embeddings.open(embeddings).bias,
        dictionary=none,
    )
    return plant_index(ws, index, coded)[0]


def vectors_run(path, *, n_items=60, dim=8, similarity="cosine", seed=0):
    """A run of plain vectors, without users; returns (workspace, vectors)."""
    ws = Workspace(str(path))
    vectors = np.random.default_rng(seed).normal(size=(n_items, dim)).astype(np.float32)
    bias = np.zeros((n_items, 0), dtype=np.float32)
    embeddings = write_embeddings(ws, vectors, bias, similarity=similarity, inputs=[])
    write_flat_index(ws, embeddings, vectors, similarity=similarity)
    return ws, vectors


def user_id(num):
    return f"usér {num}"


def random_cells(n_users, n_items, n_levels, *, seed=0):
    """Histories of growing length; user 0 has none. Times are 1000, 1001, ..."""
    rng = np.random.default_rng(seed)
    profiles = []
    for user in range(n_users):
        items = np.sort(rng.choice(n_items, size=min(user, n_items // 2), replace=False))
        profiles.append([(int(item), int(rng.integers(n_levels))) for item in items])
    cells = Cells.from_lists(profiles)
    return Cells(**{**vars(cells), "timestamp": 1000 + np.arange(cells.n_cells, dtype=np.int64)})


def write_profiles(ws, cells, levels, n_items):
    ids = [user_id(num) for num in range(cells.n_users)]
    return plant_profiles(ws, cells, levels, items_of(n_items), user_ids=ids)


def write_autoencoder(ws, profiles, levels, n_items, *, fitted_until, timed=None):
    cfg = Conv4RecConfig(latent=8, level_latent=4, profile_half_life_days=0.01)
    model = Conv4Rec(cfg, n_items=n_items, levels=levels, seed=1).eval()
    with torch.no_grad():  # far from the flat start, so that orders are clear
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
            parameter.add_(0.5 * noise)
    settings = {"inputs": [profiles]}
    return plant_autoencoder(ws, model, settings=settings, timed=timed, fitted_until=fitted_until)


def write_sparse_index(ws, embeddings, vectors, *, similarity, n_atoms=48, n_active=6):
    """Compress to a few atoms of a random dictionary, and index without lists."""
    dictionary = np.random.default_rng(3).normal(size=(n_atoms, vectors.shape[1]))
    dictionary = (dictionary / np.linalg.norm(dictionary, axis=1, keepdims=True)).astype(np.float32)
    products = vectors @ dictionary.T
    atoms = np.argsort(-np.abs(products), axis=1)[:, :n_active]
    values = np.take_along_axis(products, atoms, 1)
    kind = {"similarity": similarity}
    codes = Codes.pack(atoms, values, dictionary=dictionary, vectors=vectors, **kind)
    coded = plant_codes(ws, codes, dictionary, embeddings, **kind)
    bias = Embeddings.open(embeddings).bias
    index = Index(kind="flat", codes=codes, bias=bias, dictionary=dictionary, **kind)
    return plant_index(ws, index, coded)[0]


def model_run(
    path, *, n_items=60, n_users=20, levels=STARS, fitted_until=1100, timed=None, sparse=False
):
    """A run with an untrained autoencoder and users; returns (workspace, cells).

    `timed`: what its prior follows from; `sparse`: codes have atoms.
    """
    ws = Workspace(str(path))
    cells = random_cells(n_users, n_items, levels.n_levels)
    profiles = write_profiles(ws, cells, levels, n_items)
    fitted = {"fitted_until": fitted_until, "timed": timed}
    autoencoder = write_autoencoder(ws, profiles, levels, n_items, **fitted)
    vectors, bias = retrieval_vectors(Autoencoder.open(autoencoder).model)
    inputs = [autoencoder, profiles]
    embeddings = write_embeddings(ws, vectors, bias, similarity="inner_product", inputs=inputs)
    write = write_sparse_index if sparse else write_flat_index
    write(ws, embeddings, vectors, similarity="inner_product")
    return ws, cells
