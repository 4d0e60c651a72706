import dataclasses

import pytest

from raysys.errors import CorruptBuildError
from raysys.search.changes import Changes
from raysys.search.served import Served
from tests.support.planting import plant
from tests.support.runs import model_run, vectors_run


def test_what_is_served_names_every_build(tmp_path):
    workspace, _ = model_run(tmp_path)
    served = Served.open(workspace)
    kinds = ["autoencoder", "codes", "compressor", "embeddings", "index", "profiles"]
    assert list(served.build_ids) == kinds
    assert served.changes is None
    assert served.coded.interactions is None


def test_changes_are_served_with_the_embeddings_that_they_were_made_for(tmp_path):
    workspace, _ = vectors_run(tmp_path)
    embeddings = workspace.current("embeddings")
    changes = dataclasses.replace(Changes.none(8, 0), deleted=("42",))
    build = plant(workspace, "changes", changes.save, inputs=[embeddings])
    assert Served.open(workspace).changes.build_id == build.build_id
    (tmp_path / "changes" / build.build_id / "deleted.json").write_text('["43"]')
    with pytest.raises(CorruptBuildError, match=r"deleted\.json"):
        Served.open(workspace)
    assert Served.open(workspace, verify=False).changes is not None
