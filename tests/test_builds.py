import json

import pytest

from raysys.builds import Workspace
from raysys.errors import BuildError, CorruptBuildError, SchemaVersionError


def write(ws, kind, text="x", *, inputs=(), config=None, force=False):
    def fill(draft):
        draft.path("deep/data.txt").write_text(text)
        return {"length": len(text)}

    settings = config or {"text": text}
    return ws.build(kind, config=settings, inputs=inputs, write=fill, force=force)


def fail(draft):
    draft.path("data").write_text("half")
    raise RuntimeError("boom")


@pytest.fixture
def ws(tmp_path):
    return Workspace(str(tmp_path / "run"))


def test_a_committed_build_reads_back(ws):
    build = write(ws, "codes", "hello")
    again = ws.current("codes")
    assert again.build_id == build.build_id
    assert again.path("deep/data.txt").read_text() == "hello"
    assert again.facts == {"length": 5}
    again.verify()


def test_same_settings_reuse_and_other_settings_move_current(ws):
    first = write(ws, "codes", "a")
    second = write(ws, "codes", "b")
    assert ws.current("codes").build_id == second.build_id != first.build_id
    reused = write(ws, "codes", "a")
    assert reused.content_id == first.content_id
    assert ws.current("codes").build_id == first.build_id


def test_force_writes_the_same_build_anew(ws):
    first = write(ws, "codes", "old", config={"same": 1})
    second = write(ws, "codes", "new", config={"same": 1}, force=True)
    assert first.build_id == second.build_id
    assert second.path("deep/data.txt").read_text() == "new"
    assert first.content_id != second.content_id


def test_a_failed_stage_leaves_nothing_behind(ws, tmp_path):
    with pytest.raises(RuntimeError, match="boom"):
        ws.build("codes", config={}, write=fail)
    assert not ws.has("codes")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_missing_build_names_the_job_that_writes_it(ws):
    with pytest.raises(BuildError, match="no index build yet: index writes it"):
        ws.current("index")


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_damage_is_refused_and_named(ws, damage):
    build = write(ws, "codes", "hello")
    path = build.path("deep/data.txt")
    if damage == "delete":
        path.unlink()
    else:
        path.write_text("hell" if damage == "truncate" else "jello")
    with pytest.raises(CorruptBuildError, match=r"data\.txt"):
        ws.current("codes").verify()


def test_a_damaged_build_is_not_reused(ws):
    write(ws, "codes", "hello").path("deep/data.txt").unlink()
    assert write(ws, "codes", "hello").path("deep/data.txt").read_text() == "hello"


def test_other_schema_versions_are_refused(ws, tmp_path):
    build = write(ws, "codes")
    path = tmp_path / "run" / "codes" / build.build_id / "manifest.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"schema_version": 99}))
    with pytest.raises(SchemaVersionError, match="99"):
        ws.current("codes")


def test_a_chain_follows_content_and_refuses_mixtures(ws):
    base = write(ws, "profiles", "p")
    model = write(ws, "autoencoder", "m", inputs=[base])
    index = write(ws, "index", "i", inputs=[model, base])
    chain = ws.chain(index)
    assert {kind: b.content_id for kind, b in chain.items()} == {
        "profiles": base.content_id,
        "autoencoder": model.content_id,
        "index": index.content_id,
    }
    write(ws, "profiles", "changed", config={"text": "p"}, force=True)
    with pytest.raises(BuildError, match="mixed builds"):
        ws.chain(ws.current("index"))


def test_an_input_with_other_content_makes_another_build(ws):
    one = write(ws, "autoencoder", "m", inputs=[write(ws, "profiles", "a")])
    two = write(ws, "autoencoder", "m", inputs=[write(ws, "profiles", "b")])
    assert one.build_id != two.build_id


def test_an_unwritable_run_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="cannot write"):
        write(Workspace(str(tmp_path / "file")), "codes")


def test_an_unknown_scheme_is_refused():
    with pytest.raises(BuildError, match="nope"):
        Workspace("nope://bucket/run")


def test_builds_live_on_object_stores(s3_bucket, tmp_path):
    ws = Workspace(f"{s3_bucket}/run", cache_dir=str(tmp_path / "cache"))
    first = write(ws, "profiles", "hello")
    second = write(ws, "index", "i", inputs=[first])
    again = Workspace(f"{s3_bucket}/run", cache_dir=str(tmp_path / "other")).current("index")
    assert again.content_id == second.content_id
    again.verify()
    assert set(ws.chain(again)) == {"index", "profiles"}
    reused = write(ws, "profiles", "hello")
    assert reused.content_id == first.content_id
    with pytest.raises(RuntimeError, match="boom"):
        ws.build("codes", config={}, write=fail)
    assert not ws.has("codes")
