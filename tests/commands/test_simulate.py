import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest

from raysys.cluster import tasks
from raysys.commands.simulate import SimulateConfig, simulate
from raysys.config import load
from raysys.errors import ConfigError
from raysys.simulate.world import World, WorldSpec

SMALL = ["n_users=100", "n_items=80", "n_interactions=1500", "ray.address=local"]


def test_a_world_is_written_once_and_kept(tmp_path):
    cfg = load(SimulateConfig, [f"run={tmp_path}", *SMALL])
    first = simulate(cfg).extra
    assert pq.read_table(first["source"]).num_rows == first["rows"] > 500
    assert pq.read_table(first["items"]).column_names[:2] == ["item_id", "title"]
    assert len(World.load(first["world"]).enjoyment("u000")) == 80
    part = next((tmp_path / "world" / "interactions").iterdir())
    written = part.stat().st_mtime_ns
    assert simulate(cfg).extra == first
    assert part.stat().st_mtime_ns == written
    other = simulate(load(SimulateConfig, [f"run={tmp_path}", *SMALL, "seed=1"])).extra
    assert other["world_id"] != first["world_id"]
    assert not list(tmp_path.glob(".world*"))


@pytest.mark.ray
def test_on_a_cluster_the_world_is_the_same(tmp_path, ray_cluster, monkeypatch):
    found = []
    for name in ("here", "there"):
        extra = simulate(load(SimulateConfig, [f"run={tmp_path / name}", *SMALL])).extra
        found.append((extra["rows"], extra["world_id"], pq.read_table(extra["source"])))
        monkeypatch.setattr(tasks, "IN_PROCESS_ROWS", 0)
    assert found[0] == found[1]


def test_each_setting_makes_another_world():
    def world(*words):
        cfg = load(SimulateConfig, [*SMALL, *words])
        names = [field.name for field in dataclasses.fields(WorldSpec)]
        made = World.make(WorldSpec(**{name: getattr(cfg, name) for name in names}))
        return made, made.log_block(0)

    base, log = world()
    assert world("n_users=90")[0].users.shape == (90, 8)
    assert world("n_items=90")[0].items.shape == (90, 8)
    assert world("n_tastes=3")[0].items.shape == (80, 3)
    assert len(world("n_interactions=300")[1]) < len(log) / 2
    assert base.release.max() > 100 > world("days=100")[0].release.max()
    assert np.ptp(world("skew=0")[0].popularity) < 1e-9 < np.ptp(base.popularity)
    late = np.array([10.0**6])
    assert world("drift=0")[0].trend(late).min() == 1 > base.trend(late).max()
    uniform = world("taste_pull=0", "skew=0", "drift=0")[0].consumption("u000")
    assert np.ptp(uniform) < 1e-9 < np.ptp(base.consumption("u000"))
    assert world("rated=false")[1]["rating"].null_count > 0 == log["rating"].null_count
    # without noise, equal enjoyment means equal ratings
    exact, rows = world("noise=0")
    number = {item: n for n, item in enumerate(exact.item_ids())}
    enjoyment = np.array(
        [exact.enjoyment(row["user_id"])[number[row["item_id"]]] for row in rows.to_pylist()]
    )
    ratings = rows["rating"].to_numpy()[np.argsort(enjoyment)]
    assert np.all(np.diff(ratings) >= 0)
    assert not rows["rating"].equals(log["rating"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["n_users=0"], "n_users=0"),
        (["n_interactions=10"], "n_interactions=10"),
        (["n_items=20", "n_interactions=50000"], "n_interactions=50000"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        load(SimulateConfig, ["run=x", *settings])


def test_worlds_are_local(tmp_path):
    with pytest.raises(ConfigError, match="local folder"):
        simulate(load(SimulateConfig, ["run=s3://bucket/x"]))


def test_the_config_file_holds_the_defaults():
    assert load(SimulateConfig, yaml_path="configs/simulate.yaml") == SimulateConfig()
