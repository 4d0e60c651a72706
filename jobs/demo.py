#!/usr/bin/env python
"""From nothing to recommendations over HTTP, with the same commands that a user would type.

Run: python jobs/demo.py [run=DIR] [source=LOG items=CATALOGUE] [users=5000 n_items=2000]

Without `source` a world with a known truth is simulated, so that each recommendation can be printed
beside what that user truly likes. Everything that is started here is stopped at the end.
"""

import dataclasses
import json
import logging
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from raysys.config import load
from raysys.errors import RaysysError
from raysys.serving.client import Client

log = logging.getLogger("raysys.demo")

_START_TIMEOUT_S = 120


@dataclasses.dataclass
class DemoConfig:
    """What the demo runs on.

    Attributes:
        run: workspace; default a new temporary folder.
        source: the user's own log; default a simulated one.
        items: its item metadata.
        users: users of the simulated world.
        n_items: items of the simulated world.
        seed: seed of the world and of the training.
    """

    run: str = ""
    source: str = ""
    items: str = ""
    users: int = 5000
    n_items: int = 2000
    seed: int = 0


def main(words: list[str]) -> int:
    """Run the demo and return its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        cfg = load(DemoConfig, words)
        demo(cfg)
    except RaysysError as error:
        log.error("ERROR %s", error)
        return 2
    except subprocess.CalledProcessError as error:
        log.error("ERROR the command above ended with exit status %d", error.returncode)
        return error.returncode
    return 0


def demo(cfg: DemoConfig) -> None:
    """Simulate, run the pipeline, serve, ask, print, stop."""
    started = time.perf_counter()
    run = cfg.run or tempfile.mkdtemp(prefix="raysys-demo-")
    source, items = cfg.source, cfg.items
    if not source:
        sizes = [f"n_users={cfg.users}", f"n_items={cfg.n_items}"]
        world = raysys("simulate", f"run={run}", f"seed={cfg.seed}", *sizes)
        source, items = world["source"], world["items"]
    about = [f"source={source}", *([f"items={items}"] if items else [])]
    result = raysys("pipeline", f"run={run}", f"seed={cfg.seed}", *about)
    with serving(run) as url:
        show_answers(url, run, simulated=not cfg.source)
    show_metrics(result)
    say(f"\ndone in {time.perf_counter() - started:.0f} s; the run stays in {run}")


def raysys(*words: str) -> dict[str, Any]:
    """Run one command of the command line and return its JSON line."""
    say(f"\n$ raysys {shlex.join(words)}")
    command = [sys.executable, "-m", "raysys.cli", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


@contextmanager
def serving(run: str) -> Iterator[str]:
    """Run `raysys serve` for the block and yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["serve", f"run={run}", f"port={port}"]
    say(f"\n$ raysys {shlex.join(words)}")
    server = subprocess.Popen([sys.executable, "-m", "raysys.cli", *words])
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(url, server)
        yield url
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_until_healthy(url: str, server: "subprocess.Popen[bytes]") -> None:
    """Poll the health endpoint until it answers."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    with Client(url) as client:
        while time.monotonic() < deadline:
            if server.poll() is not None:
                raise subprocess.CalledProcessError(server.returncode, "raysys serve")
            if client.is_healthy():
                return
            time.sleep(0.5)
    raise RaysysError(f"{url} did not answer within {_START_TIMEOUT_S} s")


def say(text: str = "") -> None:
    """Write a line for the reader of the demo."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
