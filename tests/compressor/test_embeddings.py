import numpy as np
import pyarrow as pa
import pytest

from raysys.compressor.embeddings import Embeddings, new_vectors, write_embeddings
from raysys.store.builds import Workspace
from tests.support.planting import item_table, plant

N_ITEMS, DIM = 7, 3
ITEMS = item_table({"item_id": [f"i{n}" for n in range(N_ITEMS)], "title": pa.nulls(N_ITEMS)})


@pytest.fixture
def vectors():
    return np.random.default_rng(0).normal(size=(N_ITEMS, DIM)).astype(np.float32)


def test_what_is_written_is_read(tmp_path, vectors):
    bias = np.arange(2 * N_ITEMS, dtype=np.float32).reshape(N_ITEMS, 2)
    queries = {"like": np.ones((4, DIM + 2), dtype=np.float32)}

    def write(draft):
        return write_embeddings(
            draft,
            vectors=vectors,
            bias=bias,
            items=ITEMS,
            similarity="inner_product",
            queries=queries,
        )

    opened = Embeddings.open(plant(Workspace(str(tmp_path)), "embeddings", write))
    facts = opened.facts
    assert (facts.n_items, facts.dim, facts.n_bias) == (N_ITEMS, DIM, 2)
    assert (opened.similarity, facts.rankings, facts.candidate_recall) == (
        "inner_product",
        (),
        None,
    )
    np.testing.assert_array_equal(opened.vectors, vectors)
    assert isinstance(opened.vectors, np.memmap)
    np.testing.assert_array_equal(opened.bias, bias)
    assert set(opened.queries) == {"like"}
    np.testing.assert_array_equal(opened.queries["like"], queries["like"])
    assert opened.columns == ["item_num", "item_id", "title"]
    assert opened.items(["item_num"]).column_names == ["item_num"]
    assert opened.item_ids() == ITEMS["item_id"].to_pylist()


def test_vectors_that_are_filled_in_place_are_the_same_files(tmp_path, vectors):
    no_bias = np.zeros((N_ITEMS, 0), dtype=np.float32)

    def in_place(draft):
        rows = new_vectors(draft, N_ITEMS, DIM)
        rows[:] = vectors
        return write_embeddings(draft, vectors=rows, bias=no_bias, items=ITEMS, similarity="cosine")

    def whole(draft):
        return write_embeddings(
            draft, vectors=vectors, bias=no_bias, items=ITEMS, similarity="cosine"
        )

    runs = (Workspace(str(tmp_path / name)) for name in ("a", "b"))
    builds = [plant(ws, "embeddings", write) for ws, write in zip(runs, (in_place, whole))]
    assert builds[0].content_id == builds[1].content_id


def test_vectors_filled_in_place_stay_where_a_link_leads_to_the_run(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    rows = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)

    def write(draft):
        vectors = new_vectors(draft, *rows.shape)
        vectors[:] = rows
        items = pa.table({"item_id": [str(n) for n in range(len(rows))]})
        bias = np.zeros((len(rows), 0), np.float32)
        return write_embeddings(draft, vectors=vectors, bias=bias, items=items, similarity="cosine")

    workspace = Workspace(str(tmp_path / "link" / "run"))
    build = workspace.build("embeddings", config={}, write=write)
    np.testing.assert_array_equal(Embeddings.open(build).vectors, rows)
