import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from raysys.cluster import ingress
from raysys.cluster.serve_config import ServeConfig
from raysys.config import load

ROOT = Path(__file__).resolve().parents[1]


def test_cluster_yaml_satisfies_rays_schema():
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((ROOT / "cluster.yaml").read_text()), schema)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_example_configs_state_the_defaults(path):
    """A file in configs/ is the documentation of a job's keys, so it may not drift."""
    from raysys.cli import resolve
    from raysys.config import as_dict, load

    _, schema = resolve(path.stem)
    assert as_dict(load(schema, yaml_path=str(path))) == as_dict(schema())


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda p: p.stem)
def test_jobs_can_be_submitted_literally(path):
    assert path.stat().st_mode & 0o111, f"{path.name} needs its run bit"
    assert path.read_text().startswith("#!/usr/bin/env python\n")


def test_a_checkout_serves_by_its_short_name():
    code = "from serve.app import build; print(build.__module__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "raysys.cluster.serve_app\n"


def test_the_serve_config_is_one_that_serve_and_we_take():
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(
        yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text())
    )
    [application] = config.applications
    module, _, function = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    cfg = load(ServeConfig, application.args)
    assert (cfg.replicas, cfg.max_replicas) == (2, 8)
    assert cfg.presets()["home"].ranking == "discover^0.3"


def test_services_of_files_run_as_ours_do(monkeypatch):
    """What `raysys serve` sets for a Serve of its own stands in each file, but for free ports."""
    monkeypatch.setattr(os, "environ", {})
    ingress.prepare()
    wanted = {name: text for name, text in os.environ.items() if not name.endswith("_PORT")}
    assert len(wanted) > 6
    named = re.findall(r"^#   (RAY_\w+)=(\S+)$", (ROOT / "deploy/serve.yaml").read_text(), re.M)
    assert dict(named) == wanted
    for name in ("service.yaml", "service-incremental.yaml"):
        service, _ = yaml.safe_load_all((ROOT / "deploy" / "kuberay" / name).read_text())
        cluster = service["spec"]["rayClusterConfig"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            [container] = group["template"]["spec"]["containers"]
            assert {env["name"]: env["value"] for env in container["env"]} == wanted


def test_the_dashboard_shows_measures_that_there_are():
    dashboard = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
    targets = json.dumps([panel["targets"] for panel in dashboard["panels"]])
    shown = set(re.findall(r"raysys_\w+", targets))
    source = (ROOT / "raysys" / "http" / "metrics.py").read_text()
    named = set(re.findall(r"\"(raysys_\w+)\"", source))
    named |= {f"{name}_total" for name in re.findall(r"Counter\(\s*\"(\w+)\"", source)}
    assert len(shown) > 9
    assert {re.sub("_(bucket|count)$", "", name) for name in shown} <= named
    scrape = yaml.safe_load((ROOT / "deploy" / "prometheus.yaml").read_text())
    assert scrape["scrape_configs"][0]["metrics_path"] == "/metrics"
