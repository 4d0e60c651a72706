"""What a service is told from the shell, and its keys."""

import pytest
import yaml

from raysys.commands.serve_admin import (
    KeyConfig,
    RollbackConfig,
    ServiceConfig,
    key,
    reload,
    rollback,
    status,
)
from raysys.commands.update import UpdateConfig, update
from raysys.config import load
from raysys.errors import BuildError, ConfigError, CorruptBuildError
from raysys.http.app import create_app
from raysys.http.client import Client, ServiceError
from raysys.http.follow import Following
from raysys.http.keys import KeyRing
from raysys.http.service import Holder, ServiceOptions
from raysys.search.search import Search
from raysys.store.builds import Workspace
from tests.http.test_app import InProcess
from tests.support.runs import vectors_run


def two_indexes(path):
    """A run whose index was another one before; returns it and both ids."""
    workspace, _ = vectors_run(path)
    first = workspace.current("index").build_id
    vectors_run(path, n_items=70, seed=1)
    return workspace, first, workspace.current("index").build_id


def test_keys_are_written_replaced_and_removed(tmp_path):
    path = tmp_path / "folder" / "keys.yaml"

    def written(*words):
        return key(load(KeyConfig, [f"keys={path}", *words])).strip()

    shop, ops = written("name=shop"), written("name=ops", "scopes=[admin]", "per_second=2.5")
    assert shop.startswith("rs_")
    assert shop not in path.read_text()
    ring = KeyRing(str(path))
    assert (ring.find(shop).name, ring.find(ops).per_second) == ("shop", 2.5)
    again = written("name=shop")
    assert again != shop
    ring = KeyRing(str(path))
    assert ring.find(shop) is None
    assert ring.find(again).name == "shop"
    written("name=shop", "remove=true")
    assert [entry["name"] for entry in yaml.safe_load(path.read_text())["keys"]] == ["ops"]
    with pytest.raises(ConfigError, match="there is no key 'shop'"):
        written("name=shop", "remove=true")
    for words in (["name=a b"], ["name=x", "scopes=[all]"], ["name=x", "per_second=0"], []):
        with pytest.raises(ConfigError):
            written(*words)


def test_a_run_goes_back_without_a_service(tmp_path):
    workspace, first, second = two_indexes(tmp_path)
    for word in (f"build_id={first}", "build_id=null"):
        assert f"index {first}\n" in rollback(load(RollbackConfig, [f"run={tmp_path}", word]))
        assert workspace.current("index").build_id == first
        vectors_run(tmp_path, n_items=70, seed=1)
        assert workspace.current("index").build_id == second
    with pytest.raises(BuildError, match="index nosuch was not current before"):
        rollback(load(RollbackConfig, [f"run={tmp_path}", "build_id=nosuch"]))


def test_a_run_of_one_index_has_no_way_back(tmp_path):
    vectors_run(tmp_path)
    with pytest.raises(BuildError, match="holds no index build that was current before"):
        rollback(load(RollbackConfig, [f"run={tmp_path}"]))


def test_a_service_is_told_what_to_serve(tmp_path, monkeypatch):
    keys = tmp_path / "keys.yaml"
    secret = key(load(KeyConfig, [f"keys={keys}", "name=ops", "scopes=[admin]"])).strip()
    workspace, first, second = two_indexes(tmp_path / "run")
    holder = Holder(Search.open(workspace, build_id=first))
    following = Following(holder, workspace, every_s=3600)
    options = ServiceOptions(keys=KeyRing(str(keys)))
    app = create_app(holder, options, following=following, workspace=workspace, name="one")

    def in_process(url, *, key, timeout_s):
        assert url == "http://it"
        return Client(url, key=key, timeout_s=timeout_s, transport=InProcess(app))

    monkeypatch.setattr("raysys.commands.serve_admin.Client", in_process)
    with pytest.raises(ServiceError, match="a key is needed"):
        status(load(ServiceConfig, ["url=http://it"]))
    monkeypatch.setenv("RAYSYS_KEY", secret)
    assert status(load(ServiceConfig, ["url=http://it"])).splitlines()[1].split()[:2] == [
        *("one", first)
    ]
    assert second in reload(load(ServiceConfig, ["url=http://it"]))
    assert first in rollback(load(RollbackConfig, ["url=http://it"]))
    assert Workspace(str(tmp_path / "run")).current("index").build_id == first
    with pytest.raises(ConfigError, match="url=''"):
        status(load(ServiceConfig, []))


def test_what_changes_after_a_way_back_is_made_for_what_is_served(tmp_path):
    workspace, first, _ = two_indexes(tmp_path)
    rollback(load(RollbackConfig, [f"run={tmp_path}"]))
    update(UpdateConfig(run=str(tmp_path), delete=["item-7"]))
    search = Search.open(workspace)
    assert search.build_id == first
    assert search.changes_id == workspace.current("changes").build_id
    assert "item-7" not in [item.item_id for item in search.similar("item-5", top_k=60)]


def test_two_at_once_go_back_one_step(tmp_path):
    workspace, first, _ = two_indexes(tmp_path)
    present = workspace.current("index")
    vectors_run(tmp_path, n_items=80, seed=2)
    with pytest.raises(BuildError, match="another index is current by now"):
        workspace.go_back(workspace.open("index", first), present=present)
    assert len(workspace.before("index")) == 2


def test_changes_go_back_and_the_index_stays(tmp_path):
    workspace, _ = vectors_run(tmp_path)
    for name in ("item-7", "item-8"):
        update(UpdateConfig(run=str(tmp_path), delete=[name]))
    damaged = workspace.current("changes").path("deleted.json")
    damaged.write_bytes(damaged.read_bytes().replace(b"item-7", b"item-5"))
    with pytest.raises(CorruptBuildError, match=r"deleted\.json"):
        update(UpdateConfig(run=str(tmp_path), delete=["item-9"]))
    index = workspace.current("index").build_id
    told = rollback(load(RollbackConfig, [f"run={tmp_path}", "kind=changes"]))
    assert f"index {index}\n" in told
    search = Search.open(workspace)
    listed = {item.item_id for item in search.similar("item-5", top_k=60)}
    assert "item-8" in listed
    assert "item-7" not in listed
    with pytest.raises(BuildError, match="holds no changes build that was current before"):
        rollback(load(RollbackConfig, [f"run={tmp_path}", "kind=changes"]))
    for words in (["kind=codes"], ["url=http://it"]):
        with pytest.raises(ConfigError):
            load(RollbackConfig, [f"run={tmp_path}", *words])
