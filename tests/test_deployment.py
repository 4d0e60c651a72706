import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

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
