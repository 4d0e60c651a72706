"""Models that learned from users who were erased are named, whatever clocks say."""

import dataclasses

import pytest

from raysys.store.builds import Workspace
from raysys.store.erasures import models_with_erased, rewrite
from raysys.store.kinds import Facts


@dataclasses.dataclass(frozen=True)
class Text(Facts):
    text: str


@pytest.fixture
def ws(tmp_path):
    return Workspace(str(tmp_path / "run"))


def write(ws, kind, *inputs, during=lambda: None):
    def fill(draft):
        draft.path("data").write_text(kind)
        during()
        return Text(kind)

    return ws.build(kind, config={}, inputs=inputs, write=fill)


def erase(ws, build):
    def change(folder):
        (folder / "data").write_text("less")
        return {"text": "less"}

    rewrite(ws, build, change, users=1)


def test_a_model_whose_training_an_erasure_fell_into_is_named(ws):
    profiles = write(ws, "profiles")
    model = write(ws, "autoencoder", profiles, during=lambda: erase(ws, profiles))
    assert model.manifest.inputs == {"profiles": profiles.ref()}
    vectors = write(ws, "embeddings", model)
    assert models_with_erased(ws.storage) == [model.place, vectors.place]
    less = ws.current("profiles")
    after = write(ws, "autoencoder", less)
    assert after.manifest.inputs == {"profiles": {**less.ref(), "erased": 1}}
    assert after.build_id != model.build_id
    assert after.made_from(less)
    assert ws.chain(write(ws, "embeddings", after))["profiles"].build_id == less.build_id
    assert models_with_erased(ws.storage) == [model.place, vectors.place]
    erase(ws, less)
    assert after.place in models_with_erased(ws.storage)
