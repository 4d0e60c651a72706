"""The files of deploy/ and cluster.yaml: schemas, and what one says of another."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from raysys.cli import COMMANDS, resolve
from raysys.cluster.serve_config import ServeConfig
from raysys.cluster.sweep_runner import cpus_of_each
from raysys.cluster.train_workers import LaunchConfig, refuse_unplaceable
from raysys.config import load
from raysys.http.access import OPEN

ROOT = Path(__file__).resolve().parents[1]
KUBERAY = ROOT / "deploy" / "kuberay"
CLUSTERS = {"own": ROOT / "cluster.yaml", "aws": ROOT / "deploy" / "aws.yaml"}


def documents(name):
    return [*yaml.safe_load_all((KUBERAY / name).read_text())]


def refresh_job():
    *_, stored = documents("refresh.yaml")
    return yaml.safe_load(stored["data"]["refresh.yaml"])


def jobs():
    return [*documents("train.yaml"), *documents("sweep.yaml"), refresh_job()]


def clusters():
    """Every specification of a Ray cluster on Kubernetes."""
    services = [documents(name)[0] for name in ("service.yaml", "service-incremental.yaml")]
    return [job["spec"]["rayClusterSpec"] for job in jobs()] + [
        service["spec"]["rayClusterConfig"] for service in services
    ]


def pods():
    for cluster in clusters():
        yield cluster["headGroupSpec"]["template"]
        yield from (group["template"] for group in cluster["workerGroupSpecs"])


# -- cluster.yaml and deploy/aws.yaml ------------------------------------------------------------


@pytest.mark.parametrize("path", CLUSTERS.values(), ids=CLUSTERS)
def test_launchers_satisfy_rays_schema(path):
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load(path.read_text()), schema)


@pytest.mark.parametrize("path", CLUSTERS.values(), ids=CLUSTERS)
def test_what_launchers_say_of_the_dashboard_is_what_they_do(path):
    text = path.read_text()
    config = yaml.safe_load(text)
    [head], [worker] = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    assert "ray start --head" in head
    assert "--dashboard-host=127.0.0.1" in head
    assert "ray start --address=$RAY_HEAD_IP:6379" in worker
    assert "RAY_ADDRESS=http://localhost:8265" in text
    assert re.search(r"^# .*ray dashboard \S*(cluster|aws).yaml", text, re.MULTILINE)
    assert all("deploy/node.sh" in command for command in (head, worker))
    assert config["setup_commands"] == ["~/raysys/deploy/node.sh install"]
    assert set(config["file_mounts"]) == {"~/raysys", "~/.raysys.env", "~/.ray/auth_token"}
    assert not re.search(r"(SECRET|ACCESS)_\w+ *[:=] *\S", text), "names of credentials alone"


def test_both_launchers_start_ray_alike():
    keys = ("head_start_ray_commands", "worker_start_ray_commands", "setup_commands", "file_mounts")
    own, aws = (yaml.safe_load(path.read_text()) for path in CLUSTERS.values())
    assert {key: own[key] for key in keys} == {key: aws[key] for key in keys}


def test_aws_takes_the_machines_that_the_file_names(s3_bucket, tmp_path, monkeypatch):
    """By Ray's own code, from an EC2 of moto."""
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler._private.util import prepare_config, validate_config

    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    config = yaml.safe_load(CLUSTERS["aws"].read_text())
    iam = boto3.client("iam")
    for kind in config["available_node_types"].values():
        arn = kind["node_config"]["IamInstanceProfile"]["Arn"]
        name = arn.rpartition("/")[2]
        with suppress(iam.exceptions.EntityAlreadyExistsException):
            iam.create_instance_profile(InstanceProfileName=name)
        made = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        kind["node_config"]["IamInstanceProfile"] = {"Arn": made["Arn"]}
    config = prepare_config(config)
    validate_config(config)
    config = AWSNodeProvider.fillout_available_node_types_resources(config)  # from EC2's own table
    config = bootstrap_aws(config)
    provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
    found = {}
    for name, kind in config["available_node_types"].items():
        tags = {
            "ray-node-type": "head" if name == "head" else "worker",
            "ray-node-name": name,
            "ray-user-node-type": name,
            "ray-launch-config": "any",
        }
        made = provider.create_node(kind["node_config"], tags, 1)
        [machine] = made.values()
        has = kind["resources"]
        found[name] = (machine.instance_lifecycle, has["CPU"], has.get("GPU", 0))
    assert found == {"head": (None, 0, 0), "cpu": ("spot", 8, 0), "gpu": ("spot", 8, 1)}


# -- deploy/Dockerfile -------------------------------------------------------------------------


def test_the_image_is_frozen_portable_and_not_roots():
    text = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert "HNSWLIB_NO_NATIVE=1" in text
    installs = re.findall(r"pip install ([^&\n]*)", text)
    assert installs
    assert not re.search(r"(?<!extra)-index-url", text), "what it pins is not in an index of torch"
    assert all("--constraint constraints.txt" in i or "--no-deps" in i for i in installs)
    assert re.search(r"pip uninstall --yes raysys\s+&& rm -rf build .*\nCOPY raysys raysys", text)
    [user] = [line.split()[1] for line in lines if line.startswith("USER")]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    last = text[text.rindex("\nFROM") :]
    assert "pip install" not in last
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")
    }
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY")]
    sources = {name for words in copied for name in words if not words[0].startswith("--from")}
    assert sources == allowed
    assert all((ROOT / name).exists() for name in sources)


# -- deploy/kuberay ----------------------------------------------------------------------------


def test_jobs_end_and_their_clusters_with_them():
    for job in jobs():
        spec = job["spec"]
        assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
        assert spec["shutdownAfterJobFinishes"] is True
        assert spec["activeDeadlineSeconds"] > 0
        assert spec["backoffLimit"] > 0  # a lost head: the job goes on from what is saved


def test_jobs_run_commands_that_there_are():
    for job in jobs():
        program, name, *words = shlex.split(job["spec"]["entrypoint"])
        assert program == "raysys"
        if name == "refresh" and name not in COMMANDS:
            continue
        verbs = [word for word in words if "=" not in word]
        _, schema = resolve(" ".join([name, *verbs]))
        load(schema, [word for word in words if "=" in word])


def test_clusters_ask_for_a_token_and_run_the_pinned_ray():
    wanted = re.search(r"ray\[.*\]>=([\d.]+),", (ROOT / "pyproject.toml").read_text())[1]
    for cluster in clusters():
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["rayVersion"].startswith(wanted)
        for group in cluster["workerGroupSpecs"]:
            assert 0 <= group["minReplicas"] <= group["maxReplicas"]


def test_jobs_find_room_on_the_nodes_that_start_with_their_cluster():
    """A training and a sweep take nodes that are there, and the head has no CPU for them."""
    for job in jobs():
        cluster = job["spec"]["rayClusterSpec"]
        assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
        nodes = {}
        for group in cluster["workerGroupSpecs"]:
            [container] = group["template"]["spec"]["containers"]
            cpus = float(container["resources"]["requests"]["cpu"])
            nodes |= {
                f"{group['groupName']}{n}": {"CPU": cpus} for n in range(group["minReplicas"])
            }
        refuse_unplaceable(LaunchConfig(), nodes)
        concurrent = re.search(r"concurrent=(\d+)", job["spec"]["entrypoint"])
        assert cpus_of_each(int(concurrent[1]) if concurrent else 1, nodes) >= 1
    kinds = yaml.safe_load(CLUSTERS["aws"].read_text())["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert kinds["cpu"]["min_workers"] >= 1


def test_pods_are_locked_down_and_have_a_memory_limit():
    for pod in pods():
        assert pod["metadata"]["labels"]["app"] == "raysys"  # which the network policies select
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            resources = container["resources"]
            assert resources["requests"]["memory"] == resources["limits"]["memory"]


def test_the_service_is_that_of_the_two_upgrades():
    plain, budget = documents("service.yaml")
    incremental, same = documents("service-incremental.yaml")
    strategy = incremental["spec"].pop("upgradeStrategy")
    assert strategy["type"] == "NewClusterWithIncrementalUpgrade"
    assert set(strategy["clusterUpgradeOptions"]) == {
        "gatewayClassName",
        "stepSizePercent",
        "intervalSeconds",
        "maxSurgePercent",
    }
    assert plain["spec"].pop("upgradeStrategy") == {"type": "NewCluster"}
    assert (plain, budget) == (incremental, same)


def test_the_service_outlives_its_head_and_says_when_it_is_ready():
    from ray.serve.schema import ServeDeploySchema

    service, budget = documents("service.yaml")
    [application] = ServeDeploySchema.model_validate(
        yaml.safe_load(service["spec"]["serveConfigV2"])
    ).applications
    assert load(ServeConfig, application.args).replicas == 2
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"
    [group] = cluster["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    path = container["readinessProbe"]["httpGet"]["path"]
    assert path == "/readyz"
    assert path in OPEN
    labels = group["template"]["metadata"]["labels"]
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    # the owner has no scale subresource: any other kind of budget lets nothing be evicted
    assert set(budget["spec"]) == {"minAvailable", "selector"}
    assert budget["spec"]["minAvailable"] < group["minReplicas"]


def test_the_chart_limits_no_cpu_of_its_cluster():
    [values] = documents("ray-cluster-values.yaml")
    for part in ("head", "worker"):  # values are merged into the chart's, which have a limit of 1
        assert values[part]["resources"]["limits"]["cpu"] is None


def starter():
    """Return the script that the CronJob runs."""
    *_, stored = documents("refresh.yaml")
    return stored["data"]["start.py"]


def test_a_refresh_comes_alone_and_ends_before_its_watcher():
    _, role, _, cron, _ = documents("refresh.yaml")
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    [container] = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "/job/start.py"]
    job = refresh_job()
    hours = int(re.search(r"WAIT_S, .* = (\d+) \* 3600", starter())[1])
    attempts = job["spec"]["backoffLimit"] + 1  # the deadline is that of each
    assert attempts * job["spec"]["activeDeadlineSeconds"] < hours * 3600
    assert f'"/{job["metadata"]["name"]}"' in starter()
    [rule] = role["rules"]
    assert set(rule["verbs"]) == {m.lower() for m in ("GET", "DELETE")} | {"create"}


@pytest.mark.parametrize(
    ("states", "status"),
    [
        ([("Running", "RUNNING"), ("Retrying", ""), ("Complete", "SUCCEEDED")], 0),
        ([("Running", "RUNNING"), ("Failed", "FAILED")], 1),
        ([None], 1),  # somebody deleted it
    ],
    ids=["done", "failed", "gone"],
)
def test_the_cron_job_ends_as_its_ray_job_ends(states, status, tmp_path):
    asked, before = [], iter([("Complete", "FAILED"), None])

    class Server(BaseHTTPRequestHandler):
        def answer(self):
            length = int(self.headers.get("Content-Length") or 0)
            asked.append((self.command, self.path, yaml.safe_load(self.rfile.read(length))))
            started = any(method == "POST" for method, *_ in asked)
            state = ("", "")
            if self.command == "GET":
                state = (
                    (states.pop(0) if len(states) > 1 else states[0]) if started else next(before)
                )
            self.send_response(404 if state is None else 200)
            self.end_headers()
            deployment, result = state or ("", "")
            found = {"status": {"jobDeploymentStatus": deployment, "jobStatus": result}}
            self.wfile.write(json.dumps(found).encode())

        do_GET = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *words):
            pass

    (tmp_path / "token").write_text("t")
    (tmp_path / "refresh.yaml").write_text(yaml.safe_dump(refresh_job()))
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        script = starter().replace('cafile=ACCOUNT / "ca.crt"', "")
        script = script.replace(
            "https://kubernetes.default.svc", f"http://127.0.0.1:{server.server_port}"
        )
        script = script.replace("/var/run/secrets/kubernetes.io/serviceaccount", str(tmp_path))
        script = script.replace("/job/refresh.yaml", str(tmp_path / "refresh.yaml"))
        script = script.replace("3600, 15, 600", "3600, 0.01, 600")
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        server.shutdown()
    assert done.returncode == status, done.stderr
    methods = [method for method, *_ in asked]
    assert methods[:4] == ["GET", "DELETE", "GET", "POST"]
    [(place, posted)] = [(path, body) for method, path, body in asked if method == "POST"]
    assert (place, posted) == ("/apis/ray.io/v1/namespaces/raysys/rayjobs", refresh_job())


def test_network_policies_close_everything_but_what_they_name():
    _, nobody, *others = documents("network.yaml")
    assert nobody["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert len(others) == 4
    for policy in others:
        assert all(rule["from"] for rule in policy["spec"]["ingress"])


def test_the_guide_says_how_to_make_every_secret():
    text = "".join(path.read_text() for path in KUBERAY.glob("*.yaml"))
    named = set(re.findall(r"secret(?:KeyRef|Ref): \{ name: ([\w-]+)", text))
    guide = (ROOT / "docs" / "guides" / "deploy.md").read_text()
    assert named == set(re.findall(r"create secret generic ([\w-]+)", guide))


def test_kubectl_reads_the_files(tmp_path):
    """Without a cluster it knows no schemas, but its YAML is not Python's."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    names = ["network.yaml", "refresh.yaml", "service.yaml"]
    for name in names:
        shutil.copy(KUBERAY / name, tmp_path)
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": names}))
    done = subprocess.run(["kubectl", "kustomize", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read = {(d["kind"], d["metadata"]["name"]) for d in yaml.safe_load_all(done.stdout)}
    ours = [document for name in names for document in documents(name)]
    assert read == {(d["kind"], d["metadata"]["name"]) for d in ours}
