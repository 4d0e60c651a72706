import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.support.wheels import ROOT, environment

pytestmark = pytest.mark.slow

PAGE = ("index.html", "explorer.css", "explorer.js")

IMPORT_EVERYTHING = """
import importlib.util, json, pkgutil, raysys
names = [m.name for m in pkgutil.walk_packages(raysys.__path__, "raysys.")]
files = {name: importlib.import_module(name).__file__ for name in names}
print(json.dumps({"files": files, "serve": importlib.util.find_spec("serve") is not None}))
"""


def run(commands, *words, cwd):
    done = subprocess.run(
        [commands / words[0], *words[1:]],
        cwd=cwd,
        env=environment(commands),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_raysys_alone_and_all_of_it(wheel_file):
    names = set(zipfile.ZipFile(wheel_file).namelist())
    about = "-".join(wheel_file.name.split("-")[:2]) + ".dist-info"
    assert {name.split("/")[0] for name in names} == {"raysys", about}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "raysys").rglob("*.py")}
    page = {f"raysys/http/explorer/{name}" for name in PAGE}
    folder = ROOT / "raysys" / "reports" / "html" / "templates"
    page |= {str(path.relative_to(ROOT)) for path in folder.iterdir()}
    assert sources | page | {"raysys/py.typed", "raysys/cluster/haproxy.sh"} == {
        name for name in names if name.startswith("raysys/")
    }


def test_every_module_comes_from_the_wheel(wheel_commands, tmp_path):
    record = json.loads(run(wheel_commands, "python", "-c", IMPORT_EVERYTHING, cwd=tmp_path))
    [site] = wheel_commands.parent.glob("lib/python*/site-packages")
    n_modules = sum(1 for _ in (ROOT / "raysys").rglob("*.py")) - 1  # raysys itself
    assert len(record["files"]) == n_modules
    assert all(Path(path).is_relative_to(site / "raysys") for path in record["files"].values())
    assert not record["serve"]
    assert os.access(site / "raysys" / "cluster" / "haproxy.sh", os.X_OK)


def test_its_commands_start_without_a_checkout(wheel_commands, tmp_path):
    usage = run(wheel_commands, "raysys", "--help", cwd=tmp_path)
    assert "prepare" in usage
    for command in ("look", "prepare", "serve"):
        text = run(wheel_commands, "raysys", command, "--help", cwd=tmp_path)
        assert text.startswith(f"raysys {command}: ")
        assert "\n  run= " in text
