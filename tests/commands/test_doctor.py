"""Checks of the doctor."""

import stat

import pytest
import ray

from raysys.cluster.node_probes import Answer, Node, alive_nodes, ask_nodes
from raysys.commands import doctor, doctor_node, host
from raysys.commands.doctor import DoctorConfig
from raysys.commands.doctor_node import Question, look
from raysys.commands.doctor_nodes import listed, node_checks
from raysys.config import load
from raysys.errors import ConfigError, DataError
from tests.support.runs import vectors_run

GIB = 1 << 30


def nodes(*names):
    resources = {"CPU": 2.0, "object_store_memory": 1.0 * GIB}
    return [Node(name * 8, name, f"10.0.0.{n}", resources) for n, name in enumerate(names, 1)]


def said(**other):
    """Return what a healthy node says, but for some entries."""
    usual = {
        "versions": {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0+cpu"},
        "memory_bytes": 16 * GIB,
        "memory_free_bytes": 8 * GIB,
        "disk_free_bytes": 50 * GIB,
        "shm_bytes": 8 * GIB,
        "open_files": 65536,
        "own_address": "10.0.0.1",
        "address": "10.0.0.1",
        "interface": "eth0",
        "gloo_interface": None,
        "token": 0o600,
        "port_free": True,
        "storage": {"write_mb_per_s": 200.0, "read_mb_per_s": 900.0, "free_bytes": None},
        "marker": True,
        "source": "",
        "gpus": None,
    }
    return Answer(said=usual | other, ahead_s=0.001, ahead_within_s=0.0005)


def found(answers, the_nodes=None):
    """Return {name of a check: check} of {node: answer}."""
    checks = node_checks(the_nodes or nodes(*answers), answers)
    return {check.name: check for check in checks}


def test_a_log_is_looked_at_where_one_is_named(small_log, tmp_path):
    assert doctor._data(DoctorConfig()) == (None, "no source= given")
    fit, finding = doctor._data(load(DoctorConfig, [f"source={small_log}"]))
    assert fit
    assert finding.endswith("log.csv: 1 file(s)")
    missing = load(DoctorConfig, [f"source={tmp_path / 'none.csv'}"])
    with pytest.raises(DataError, match="does not exist"):
        doctor._data(missing)


def test_a_run_is_written_to_and_its_builds_are_verified(tmp_path):
    vectors_run(tmp_path)
    cfg = load(DoctorConfig, [f"run={tmp_path}"])
    fit, finding = doctor._builds(cfg)
    assert fit
    assert "index" in finding
    assert "writes and reads" in doctor._storage(cfg)[1]
    assert not list(tmp_path.glob(".doctor-*"))


def test_healthy_nodes_pass_every_check():
    checks = found({"a": said(), "b": said()})
    assert {check.ok for check in checks.values()} <= {True, None}
    assert not any(check.warns for check in checks.values())
    assert checks["same"].finding.startswith("python 3.11.7, ray 2.60.0")
    assert "200/900 on all 2" in checks["from nodes"].finding


@pytest.mark.parametrize(
    ("other", "name", "words"),
    [
        ({"versions": {"python": "3.11.7", "ray": "2.60.0", "torch": "2.12"}}, "same", "b: 2.12"),
        ({"marker": False, "storage": None}, "shared", "run= is another folder, or none, on b"),
        ({"source": None}, "shared", "source= is not there on b"),
        ({"source": "9 ffff"}, "shared", "source= differs"),
        ({"storage": {"problem": "disk is full"}}, "from nodes", "b: disk is full"),
        ({"disk_free_bytes": GIB}, "memory", "disk: b: 1.0 GiB"),
    ],
)
def test_what_a_run_would_fail_by_fails(other, name, words):
    first = said(source="7 aaaa") if "source" in other else said()
    check = found({"a": first, "b": said(**other)})[name]
    assert check.ok is False
    assert words in check.finding


@pytest.mark.parametrize(
    ("other", "name", "words"),
    [
        ({"open_files": 1024}, "files", "b: 1024"),
        ({"shm_bytes": GIB // 2}, "objects", "/dev/shm is smaller"),
        ({"memory_free_bytes": GIB // 4}, "memory", "b: 0.2 GiB of 16.0 GiB"),
        ({"token": 0o644}, "token", "readable by others on b"),
        ({"own_address": "127.0.1.1"}, "names", "127.0.1.1"),
        (
            {"storage": {"write_mb_per_s": 3.0, "read_mb_per_s": 900.0, "free_bytes": None}},
            "from nodes",
            "b: 3/900: slow",
        ),
    ],
)
def test_what_somebody_should_look_at_is_a_warning(other, name, words):
    check = found({"a": said(), "b": said(**other)})[name]
    assert (check.ok, check.warns) == (None, True)
    assert words in check.finding


def test_a_named_interface_settles_the_loopback_name():
    answer = said(own_address="127.0.1.1", gloo_interface="eth0")
    assert found({"a": answer, "b": answer})["names"].ok


def test_clocks_apart_are_told_with_what_is_not_sure_taken_off():
    slow = Answer(said=said().said, ahead_s=-3.0, ahead_within_s=2.0)
    assert found({"a": said(), "b": slow})["clocks"].ok
    off = Answer(said=said().said, ahead_s=-3.0, ahead_within_s=0.1)
    check = found({"a": said(), "b": off})["clocks"]
    assert (check.warns, "-3.00 s at most (b)" in check.finding) == (True, True)
    far = Answer(said=said().said, ahead_s=900.0, ahead_within_s=0.1)
    assert found({"a": said(), "b": far})["clocks"].ok is False


def test_gpus_that_torch_does_not_see_or_cannot_join_fail():
    some = [Node(n.ident, n.name, n.address, {**n.resources, "GPU": 2.0}) for n in nodes("a", "b")]
    good, blind = {"count": 2, "nccl": True}, {"count": 1, "nccl": True}
    assert found({"a": said(gpus=good), "b": said(gpus=good)}, some)["gpus"].ok
    checks = found({"a": said(gpus=good), "b": said(gpus=blind)}, some)
    assert "does not see all GPUs of b" in checks["gpus"].finding
    deaf = {"count": 2, "nccl": False}
    checks = found({"a": said(gpus=deaf), "b": said(gpus=good)}, some)
    assert "no NCCL on a" in checks["gpus"].finding


def test_a_node_that_says_nothing_is_named_and_the_others_are_judged():
    answers = {"a": said(), "b": Answer(problem="does not answer within 60 s")}
    checks = found(answers, nodes("a", "b"))
    assert checks["nodes"].ok is False
    assert checks["nodes"].finding == "b: does not answer within 60 s"
    assert checks["same"].ok
    assert [c.name for c in node_checks(nodes("a"), {"a": Answer(problem="gone")})] == ["nodes"]


def test_many_nodes_stay_one_line():
    assert listed({f"n{k}": str(k) for k in range(9)}, 9).endswith("n5: 5, and 3 more")
    assert listed({"a": "1", "b": "1"}, 2) == "1 on all 2"
    assert listed({"a": "1"}, 2) == "a: 1"
    assert listed({"a": "1"}, 1) == "1"


def test_memory_is_that_of_the_container(tmp_path):
    (tmp_path / "proc").mkdir()
    meminfo = "MemTotal: 8388608 kB\nMemAvailable: 6291456 kB\n"
    (tmp_path / "proc/meminfo").write_text(meminfo)
    assert host.memory_bytes(tmp_path) == (8 * GIB, 6 * GIB)
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{2 * GIB}\n")
    (group / "memory.current").write_text(f"{GIB}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {GIB // 2}\n")
    assert host.memory_bytes(tmp_path) == (2 * GIB, GIB + GIB // 2)
    (group / "memory.max").write_text("max\n")
    assert host.memory_bytes(tmp_path) == (8 * GIB, 6 * GIB)
    assert host.memory_bytes(tmp_path / "none") == (0, 0)


@pytest.mark.parametrize(
    ("own", "folder", "limit", "usage"),
    [
        ("0::/slurm/job_1/step_0", "slurm/job_1", "memory.max", "memory.current"),
        (
            "3:cpu:/no\n5:hugetlb,memory:/job_1/step_0",
            "memory/job_1",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
        ),
    ],
)
def test_memory_is_that_of_the_groups_above(tmp_path, own, folder, limit, usage):
    (tmp_path / "proc/self").mkdir(parents=True)
    meminfo = "MemTotal: 8388608 kB\nMemAvailable: 6291456 kB\n"
    (tmp_path / "proc/meminfo").write_text(meminfo)
    (tmp_path / "proc/self/cgroup").write_text(f"{own}\n")
    group = tmp_path / "sys/fs/cgroup" / folder
    group.mkdir(parents=True)
    (group / limit).write_text(f"{4 * GIB}\n")
    (group / usage).write_text(f"{3 * GIB}\n")
    assert host.memory_bytes(tmp_path) == (4 * GIB, GIB)
    (tmp_path / "proc/self/cgroup").write_text("0::/../../elsewhere\n")
    assert host.memory_bytes(tmp_path) == (8 * GIB, 6 * GIB)


def test_memory_that_nothing_tells_is_not_known():
    check = found({"a": said(memory_bytes=0, memory_free_bytes=0)})["memory"]
    assert (check.ok, check.finding) == (True, "not known")


def test_a_node_looks_at_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IROTH)
    source = tmp_path / "log.csv"
    source.write_text("user_id,item_id\n")
    question = Question(run=str(tmp_path), folder=".doctor-x", source=str(source), port=1)
    seen = look(question)
    assert seen["token"] == 0o604
    assert seen["storage"]["write_mb_per_s"] > 0
    assert seen["source"] == doctor_node.source_mark(str(source)) != ""
    assert seen["versions"]["ray"] == ray.__version__
    assert not [*tmp_path.glob(".doctor-x/*")]
    elsewhere = Question(run=str(tmp_path / "not"), folder="f", marker=("f/marker", "one"))
    assert (look(elsewhere)["marker"], look(elsewhere)["storage"]) == (False, None)
    assert not (tmp_path / "not").exists()


def _where():
    return ray.get_runtime_context().get_node_id()


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_without_a_free_cpu_is_looked_at(ray_cluster, tmp_path, caplog):
    @ray.remote(num_cpus=2)
    class Replica:
        def ready(self):
            return True

    replica = Replica.remote()
    try:
        ray.get(replica.ready.remote())
        [node] = alive_nodes()
        assert ask_nodes([node], _where, [])[node.name].said == node.ident
        cfg = load(DoctorConfig, [f"run={tmp_path}", "launch.workers=2"])
        with caplog.at_level("INFO"):
            result = doctor.doctor(cfg)
    finally:
        ray.kill(replica)
    checks = {check["name"]: check for check in result.extra["checks"]}
    assert checks["cluster"]["finding"].endswith("0 CPUs free")
    assert checks["nodes"]["finding"] == "1 answer"
    assert checks["workers"]["finding"] == "launch.workers=2 find room"
    [node] = result.extra["nodes"].values()
    assert node["storage"]["read_mb_per_s"] > 0
    assert abs(node["clock_ahead_s"]) < 1
    too_many = load(DoctorConfig, ["launch.gpu=true", "launch.workers=3"])
    with pytest.raises(ConfigError, match=r"workers: launch\.workers=3 needs 3 workers"):
        doctor.doctor(too_many)
