"""The wheel of this checkout, installed where the checkout is out of reach."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FILES = ("LICENSE", "README.md", "pyproject.toml")
_FOLDERS = ("configs", "jobs", "raysys", "serve", "tests")
_OFFLINE = ("--no-deps", "--no-index", "--quiet")


def build(folder):
    """Build in a copy, as setuptools leaves its own folders beside the sources."""
    copy = folder / "checkout"
    copy.mkdir()
    for name in _FILES:
        shutil.copy2(ROOT / name, copy)
    for name in _FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", *_OFFLINE, "--no-build-isolation", "--wheel-dir", folder, copy)
    [path] = folder.glob("*.whl")
    return path


def install(path, folder):
    """Install into a new environment and return its folder of commands.

    The dependencies are those of the running one. Its own raysys stays out: a .pth file adds a
    path, and does not process the .pth file of an editable installation there.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    [site] = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    commands = folder / "bin"
    pip("--python", commands / "python", "install", *_OFFLINE, path)
    hand_loops(ROOT / "raysys", site / "raysys")
    serve = commands / "serve"  # which Ray's own wheel would have brought
    serve.write_text(f'#!/bin/sh\nexec {commands}/python -m ray.serve.scripts "$@"\n')
    serve.chmod(0o755)
    return commands


def hand_loops(source, target):
    """Copy compiled loops that lie beside the same sources: to compile them takes half a minute.

    A loop is taken only if the content of its sources is the same, and otherwise compiled.
    """
    for loop in source.glob("**/__pycache__/*.nb[ic]"):
        copy = target / loop.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy2(loop, copy)


def pip(*words):
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def environment(commands):
    """Return the variables of a shell in which that environment is active."""
    env = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}"}
    for name in ("PYTHONPATH", "RAY_ADDRESS"):
        env.pop(name, None)
    return env
