"""What trainings need, before they begin."""

import dataclasses
import socket

import pytest

from raysys.autoencoder.config import Conv4RecConfig
from raysys.cluster.node_probes import Node
from raysys.cluster.train_workers import LaunchConfig
from raysys.commands import host, preflight, preflight_hosts
from raysys.commands.preflight import Rates, Size
from raysys.commands.train import TrainConfig, sized, train_builds
from raysys.compressor.model import CompresSAEConfig
from raysys.config import identity, load
from raysys.data.profiles import ProfilesFacts
from raysys.errors import ConfigError
from raysys.training.optim import OptimConfig
from tests.support.training import config, planted_run

GIB = 1 << 30
RATES = Rates(flops=5e10, bytes=1e10)
MILLION = Size(n_items=1_000_000, n_users=1_000_000, n_cells=20_000_000, n_levels=5)
OPTIM = OptimConfig(batch_size=None)


def need(size=MILLION, workers=2, optim=OPTIM, **model):
    return preflight.training(size, Conv4RecConfig(**model), optim, workers=workers, rates=RATES)


@pytest.mark.parametrize(
    ("n_items", "sizes"),
    [
        (100, (512, 512)),
        (100_000, (512, 512)),
        (400_000, (512, 2048)),
        (1_000_000, (192, 4096)),
        (3_000_000, (64, 8192)),
        (100_000_000, (64, 8192)),
    ],
)
def test_sizes_follow_from_the_catalogue_where_none_are_given(n_items, sizes):
    assert preflight.sizes_of(n_items, Conv4RecConfig(), OPTIM) == sizes
    given = Conv4RecConfig(latent=300), OptimConfig(batch_size=7)
    assert preflight.sizes_of(n_items, *given) == (300, 7)


def test_what_was_chosen_is_what_would_have_been_given():
    cfg = TrainConfig()
    chosen = dataclasses.replace(
        cfg,
        autoencoder=dataclasses.replace(cfg.autoencoder, latent=512),
        optim=dataclasses.replace(cfg.optim, batch_size=512),
    )
    assert chosen == load(TrainConfig, ["autoencoder.latent=512", "optim.batch_size=512"])
    assert identity(chosen)["autoencoder"]["latent"] == 512


def test_a_need_grows_with_items_dims_and_workers_of_a_host():
    whole = need(latent=512)
    assert whole.most > need(latent=256).most > need(latent=64).most
    assert whole.most > need(dataclasses.replace(MILLION, n_items=500_000), latent=512).most
    assert whole.of_host(2) == whole.most + whole.other_bytes
    assert whole.of_host(0) == 0
    weights = 4 * MILLION.n_items * 512
    assert whole.most > 5 * weights  # themselves, gradients, two moments, unit vectors


def test_more_dims_and_more_users_take_longer():
    assert need(latent=256).seconds > need(latent=64).seconds
    many = dataclasses.replace(MILLION, n_users=4_000_000, n_cells=80_000_000)
    assert need(many, latent=64).seconds > 2 * need(latent=64).seconds
    quick = preflight.training(MILLION, Conv4RecConfig(), OPTIM, workers=2, rates=Rates(1e12, 1e11))
    assert quick.seconds < need().seconds


def test_what_does_not_fit_is_refused_with_what_would():
    hosts = [("big", 100 * GIB, 1), ("small", 16 * GIB, 1)]
    told = preflight.refusal(MILLION, Conv4RecConfig(latent=512), OPTIM, workers=2, hosts=hosts)
    assert told is not None
    assert told.startswith("autoencoder.latent=512 over 1,000,000 items needs ")
    assert "; small has 16.0 GiB for it: autoencoder.latent=" in told
    fits = int(told.rpartition("latent=")[2].split()[0])
    assert fits % 64 == 0
    smaller = Conv4RecConfig(latent=fits)
    assert preflight.refusal(MILLION, smaller, OPTIM, workers=2, hosts=hosts) is None
    larger = Conv4RecConfig(latent=fits + 64)
    assert preflight.refusal(MILLION, larger, OPTIM, workers=2, hosts=hosts) is not None


def test_where_the_level_block_is_too_large_it_is_cut_too():
    hosts = [("small", 6 * GIB, 1)]
    told = preflight.refusal(MILLION, Conv4RecConfig(), OPTIM, workers=1, hosts=hosts)
    assert told is not None
    words = told.partition("for it: ")[2].split()
    assert [word.partition("=")[0] for word in words[:2]] == [
        "autoencoder.latent",
        "autoencoder.level_latent",
    ]
    latent, level_latent = (int(word.partition("=")[2]) for word in words[:2])
    smaller = Conv4RecConfig(latent=latent, level_latent=level_latent)
    assert preflight.refusal(MILLION, smaller, OPTIM, workers=1, hosts=hosts) is None


def test_two_workers_of_a_host_share_its_memory():
    one = need(latent=256).most
    hosts = [("host", one + GIB, 2)]
    told = preflight.refusal(MILLION, Conv4RecConfig(latent=256), OPTIM, workers=2, hosts=hosts)
    assert told is not None
    assert "for the 2 there" in told
    assert told.endswith("launch.workers=1 fits")


def test_small_trainings_and_unknown_hosts_are_never_refused():
    small = Size(2000, 5000, 300_000, 5)
    assert preflight.refusal(small, Conv4RecConfig(), OPTIM, workers=2, hosts=[("h", 1, 2)]) is None
    unknown = [("h", 0, 2)]
    assert preflight.refusal(MILLION, Conv4RecConfig(), OPTIM, workers=2, hosts=unknown) is None


def test_nothing_fits_a_host_without_memory():
    told = preflight.refusal(
        MILLION, Conv4RecConfig(), OPTIM, workers=1, hosts=[("h", GIB // 4, 1)]
    )
    assert told is not None
    assert "a host with more memory" in told


def test_encoding_and_an_index_grow_with_the_catalogue():
    cfg = CompresSAEConfig()
    large, small = (preflight.compressing(n, 300, cfg, rates=RATES) for n in (10**6, 10**4))
    assert large.most > small.most
    assert large.seconds > small.seconds
    needs = [
        preflight.indexing(10**6, 300, 32, kind, rates=RATES) for kind in ("flat", "ivf", "graph")
    ]
    assert needs[0].most < needs[1].most < needs[2].most


def test_codes_and_indexes_that_do_not_fit_are_refused(monkeypatch, caplog):
    monkeypatch.setattr(host, "memory_bytes", lambda: (3 * GIB // 2, 3 * GIB // 2))
    with pytest.raises(ConfigError, match=r"compressor\.code_dim=(2048|1024|512) fits"):
        preflight_hosts.refuse_compressing(10**6, 1000, CompresSAEConfig())
    with pytest.raises(ConfigError, match=r"kind=ivf over 1,000,000 items .*: kind=flat fits"):
        preflight_hosts.refuse_indexing(10**6, 600, 32, "ivf")
    monkeypatch.setattr(host, "memory_bytes", lambda: (8 * GIB, 8 * GIB))
    preflight_hosts.refuse_compressing(10**6, 1000, CompresSAEConfig())
    preflight_hosts.refuse_indexing(10**6, 600, 32, "ivf")
    assert "memory is short" not in caplog.text
    monkeypatch.setattr(host, "memory_bytes", lambda: (8 * GIB, GIB))
    preflight_hosts.refuse_indexing(10**6, 600, 32, "ivf")  # others may be gone soon
    assert "memory is short now: kind=ivf needs" in caplog.text


def test_rates_are_measured_in_a_moment():
    rates = Rates.here()
    assert rates.flops > 1e7
    assert rates.bytes > 1e7


def test_a_job_without_workers_is_judged_by_its_own_host():
    [(name, free, here)] = preflight_hosts.hosts_of(LaunchConfig(workers=0))
    assert (name, here) == (socket.gethostname(), 1)
    assert free > 0


def test_a_training_that_does_not_fit_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    workspace = planted_run(tmp_path)
    monkeypatch.setattr(preflight, "_SMALL", 0)
    monkeypatch.setattr(host, "memory_bytes", lambda: (1000, 1000))
    cfg = config(workspace, "model=autoencoder", "launch.workers=0", "autoencoder.latent=512")
    with pytest.raises(ConfigError, match=r"latent=512 over 45 items needs .* has 0\.0 GiB for it"):
        train_builds(cfg, workspace)
    assert not workspace.has("autoencoder")


def test_settings_without_sizes_get_those_of_the_catalogue(tmp_path):
    workspace = planted_run(tmp_path)
    profiles = workspace.current("profiles")
    cfg = sized(TrainConfig(run=str(tmp_path)), profiles)
    assert (cfg.autoencoder.latent, cfg.optim.batch_size) == (512, 512)
    assert sized(cfg, profiles) is cfg


def test_sizes_are_those_of_the_whole_catalogue_whatever_is_fitted(tmp_path, monkeypatch):
    profiles = planted_run(tmp_path).current("profiles")
    monkeypatch.setattr("raysys.commands.train.sizes_of", lambda n, *_: (n, n))
    for refit in ("none", "val", "all"):
        cfg = sized(TrainConfig(run=str(tmp_path), refit=refit), profiles)
        assert cfg.autoencoder.latent == ProfilesFacts.of(profiles).n_items


@pytest.fixture
def hosts(monkeypatch):
    """Return a function that makes the cluster of (name, CPUs, GiB); `small` is this host."""

    def make(*named, gpus=0.0):
        nodes = [
            Node(name, name, name, {"CPU": float(cpus), "GPU": gpus, "memory": gib * float(GIB)})
            for name, cpus, gib in named
        ]
        monkeypatch.setattr(preflight_hosts, "alive_nodes", lambda: nodes)
        found = {node.name: node.resources for node in nodes}
        monkeypatch.setattr(preflight_hosts, "node_resources", lambda: found)

    monkeypatch.setattr(preflight_hosts.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(preflight_hosts, "own_address", lambda: "small")
    monkeypatch.setattr(host, "memory_bytes", lambda: (9 * GIB, 3 * GIB))
    return make


def test_workers_fill_one_node_after_the_other(hosts):
    def found(workers, **more):
        return preflight_hosts.hosts_of(LaunchConfig(workers=workers), **more)

    hosts(("small", 2, 5), ("large", 4, 20), ("idle", 1, 7))
    assert found(5) == [("small", 8 * GIB, 1), ("large", 20 * GIB, 4)]
    assert found([1, 5]) == [("large", 20 * GIB, 1)]
    assert found([1, 5], fewest=False) == found(5)
    assert found(2, concurrent=2) == [("large", 20 * GIB, 4)]
    assert found(0, concurrent=3) == [("small", 8 * GIB, 1), ("large", 20 * GIB, 2)]  # 2 CPUs each
    hosts(("small", 2, 5))
    assert found(4) == [("small", 8 * GIB, 4)]  # half a CPU each


class Facts:
    catalogue = {"val": 200_000, "test": 200_000}
    n_cells = {0: 10**6}
    n_users = 10**5
    levels = range(5)
    split = "temporal"


def test_workers_are_chosen_by_hosts_where_none_are_given(hosts, monkeypatch, caplog):
    def chosen(*settings):
        cfg = load(TrainConfig, ["autoencoder.latent=256", "optim.batch_size=512", *settings])
        return preflight_hosts.with_workers(cfg, Facts).launch.workers

    caplog.set_level("INFO")
    monkeypatch.setattr(preflight_hosts, "_LONG_S", 1e9)
    many = [("small", 2, 9), ("b", 2, 9), ("c", 2, 9)]
    hosts(*many)
    assert chosen() == 2
    assert not caplog.messages
    assert chosen("launch.workers=5") == 5
    assert chosen("launch.workers=[1,3]") == [1, 3]
    monkeypatch.setattr(preflight_hosts, "_LONG_S", 1.0)
    assert chosen() == 3
    assert "launch.workers=3: one a host, as one alone would take some" in caplog.text
    hosts(("small", 1, 9))
    assert chosen() == 1
    monkeypatch.setattr(host, "memory_bytes", lambda: (5 * GIB, 3 * GIB))
    hosts(("small", 4, 5))
    assert chosen() == 1
    assert "launch.workers=1: two do not fit into the memory of a host" in caplog.text
    hosts(("small", 4, 5), gpus=1.0)
    assert chosen() == 1
    hosts(("small", 4, 5), gpus=2.0)
    assert chosen() == 2


def test_an_elastic_training_is_refused_where_the_fewest_do_not_fit(hosts, caplog):
    def refuse(*settings, **more):
        cfg = load(TrainConfig, ["autoencoder.latent=256", "optim.batch_size=512", *settings])
        preflight_hosts.refuse_oversized(cfg, Facts, **more)

    hosts(("small", 4, 5))
    refuse("launch.workers=[1,4]")
    assert "memory is short where all workers find room" in caplog.text
    with pytest.raises(ConfigError, match=r"for the 4 there; small has 8\.0 GiB for it"):
        refuse("launch.workers=4")
    with pytest.raises(ConfigError, match=r"for the 4 there; small .* concurrent=1 fits"):
        refuse("launch.workers=1", concurrent=4)


def test_many_small_workers_need_much_together():
    small = Size(5_000, 50_000, 1_000_000, 5)
    cfg = Conv4RecConfig(latent=128)
    need = preflight.training(small, cfg, OPTIM, workers=32, rates=RATES)
    assert not preflight.is_over(need.most, 1)
    told = preflight.refusal(small, cfg, OPTIM, workers=32, hosts=[("h", 8 * GIB, 32)])
    assert told is not None
    assert "for the 32 there; h has 8.0 GiB for it" in told
