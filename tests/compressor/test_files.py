import numpy as np
import pytest

from raysys.compressor.codes import Codes
from raysys.compressor.files import Coded, Compressor, write_compressor
from raysys.compressor.model import CompresSAE
from raysys.errors import BuildError
from raysys.store.builds import Workspace
from tests.support.planting import plant, plant_codes, plant_embeddings

DIM, CODE_DIM = 4, 8


@pytest.fixture
def ws(tmp_path):
    return Workspace(str(tmp_path))


@pytest.fixture
def vectors():
    return np.random.default_rng(0).normal(size=(6, DIM)).astype(np.float32)


def test_a_compressor_comes_back_with_its_encoder(ws):
    model = CompresSAE(DIM, code_dim=CODE_DIM, n_active=2, wide_weight=0.25)
    dictionary = model.dictionary.detach().numpy()

    def write(draft):
        return write_compressor(draft, dictionary, n_items=6, n_active=2, model=model)

    build = plant(ws, "compressor", write)
    opened = Compressor.open(build)
    facts = opened.facts
    assert (facts.n_items, facts.dim, facts.code_dim, facts.n_active) == (6, DIM, CODE_DIM, 2)
    np.testing.assert_array_equal(opened.dictionary, dictionary)
    encoder = opened.encoder(n_active=1)
    assert (encoder.n_active, encoder.wide_weight) == (1, 0.25)
    copy = plant(ws, "compressor", opened.copy_to, config={"copy": True})
    assert copy.manifest.files == build.manifest.files
    assert copy.record() == build.record()


def test_codes_name_all_that_they_were_made_from(ws, vectors):
    codes = Codes.pack_dense(vectors, similarity="cosine")
    none = np.zeros((0, DIM), dtype=np.float32)
    coded = plant_codes(ws, codes, none, plant_embeddings(ws, vectors))
    assert Coded.current(ws).codes.build_id == coded.codes.build_id
    assert [build.kind for build in coded.builds] == ["codes", "compressor", "embeddings"]
    compressor = Compressor.open(coded.compressor)
    assert compressor.encoder(n_active=1) is None
    assert compressor.dictionary_of(codes).shape == (0, DIM)


def test_codes_without_their_compressor_are_refused(ws, vectors):
    embeddings = plant_embeddings(ws, vectors)
    with pytest.raises(BuildError, match="some head names no codes build"):
        Coded.of(ws.chain(embeddings), "some head")
