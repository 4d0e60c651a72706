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

import numpy as np

from raysys.config import load
from raysys.data.profiles import Profiles
from raysys.errors import RaysysError
from raysys.http.client import Client, ServiceError
from raysys.simulate.world import World
from raysys.store.builds import Workspace

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
    world = None
    if not source:
        sizes = [f"n_users={cfg.users}", f"n_items={cfg.n_items}"]
        world = raysys("simulate", f"run={run}", f"seed={cfg.seed}", *sizes)
        source, items = world["source"], world["items"]
    about = [f"source={source}", *([f"items={items}"] if items else [])]
    result = raysys("pipeline", f"run={run}", f"seed={cfg.seed}", *about)
    with serving(run) as url:
        show_answers(url, run, World.load(Path(world["world"])) if world else None)
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
        server.send_signal(signal.SIGTERM)
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
            try:
                client.health()
            except ServiceError:
                time.sleep(0.5)
            else:
                return
    raise RaysysError(f"{url} did not answer within {_START_TIMEOUT_S} s")


def show_answers(url: str, run: str, world: World | None) -> None:
    """Ask for one user's recommendations and print them, beside the truth where it is known."""
    user_id, liked = pick_user(run)
    say(f"\nPOST {url}/v1/recommend  {{'user_id': {user_id!r}, 'k': 10}}")
    with Client(url) as client:
        answer = client.recommend(user_id=user_id, k=10)
        rows = [item.model_dump() for item in answer.items]
        first = rows[0]["item_id"]
        similar = client.similar(first, k=5).items
    say("among what the user liked best: " + "; ".join(liked))
    columns = ["title", "p_consume", "p_like", "expected_rating"]
    if world is not None:
        truth = dict(zip(world.item_ids(), world.enjoyment(user_id).tolist(), strict=True))
        for row in rows:
            row["true enjoyment"] = truth[row["item_id"]]
        columns.append("true enjoyment")
    say(table(rows, columns))
    if world is not None:
        chosen = sum(row["true enjoyment"] for row in rows) / len(rows)
        mean = sum(truth.values()) / len(truth)
        say(f"mean true enjoyment: recommended {chosen:.3f}, whole catalogue {mean:.3f}")
    say(f"\nGET {url}/v1/items/{first}/similar?k=5")
    say(table([item.model_dump() for item in similar], ["title", "score"]))


def pick_user(run: str) -> tuple[str, list[str]]:
    """Return a user with a history of typical length, and titles of what they liked best."""
    profiles = Profiles.open(Workspace(run).current("profiles"))
    cells = profiles.cells()
    known = np.flatnonzero(cells.counts >= min(10, cells.counts.max()))
    row = int(known[np.argsort(cells.counts[known], kind="stable")[len(known) // 2]])
    history = cells.users(np.array([row]))
    values = np.nan_to_num(profiles.levels.value_array())[history.level]
    best = history.item_num[np.argsort(-values, kind="stable")[:5]]
    names = profiles.items.take(best)
    titles = zip(names["title"].to_pylist(), names["item_id"].to_pylist(), strict=True)
    user_id = profiles.user_ids[int(cells.user_num[row])]
    return str(user_id), [title or item_id for title, item_id in titles]


def show_metrics(result: dict[str, Any]) -> None:
    """Print the evaluation: the model, what the index returns, and the baselines."""
    names = ["recall@20", "recall@20^0.3", "ndcg@100", "coverage@20", "rmse", "nll"]
    listed = {"model": result["metrics"], "index": result.get("metrics_index", {})}
    listed |= result.get("baselines", {})
    rows = []
    for name, metrics in listed.items():
        values = {key: metrics.get(key, {}).get("mean") for key in names}
        rows.append({"ranking by": name} | values)
    say("\nevaluation on the test period (later than everything the model saw)")
    say(table(rows, ["ranking by", *names]))


def table(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """Lay out rows as aligned text."""
    cells = [columns, *([cell(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) for line in cells
    ]
    return "\n".join("  " + line.rstrip() for line in lines)


def cell(value: Any) -> str:
    """Format one value; absent ones as a dash."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def say(text: str = "") -> None:
    """Write a line for the reader of the demo."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
