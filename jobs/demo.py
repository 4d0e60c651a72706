#!/usr/bin/env python
"""From nothing to recommendations over HTTP, with the same commands that a user would type.

Run: python jobs/demo.py [run=DIR] [source=LOG items=CATALOGUE] [users=5000 n_items=2000]

It ends with one user's list by every ranking, side by side. Without `source` a world with a known
truth is simulated, so that each recommendation stands beside what that user truly enjoys.
Everything that is started here is stopped at the end.
"""

import dataclasses
import itertools
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
_LISTED = 10  # items of each list
_COLUMNS = 100  # of the lists side by side

RANKINGS = {
    "consume": "likely to be taken",
    "rating": "rated highest",
    "like": "likely to be liked",
    "discover": "liked, not obvious",
}


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
    user_id, liked = pick_user(run)
    with serving(run) as url:
        lists = ask(url, user_id)
    show_metrics(result)
    say(f"\nuser {user_id} liked best: " + "; ".join(liked))
    show_lists(lists, truth_of(World.load(Path(world["world"])), user_id) if world else None)
    show_next(run, user_id)
    say(f"\nall figures on one page: {result['page']}")
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


def ask(url: str, user_id: str) -> dict[str, list[dict[str, Any]]]:
    """Ask for a user's list by every ranking of the run, and for what is similar to the first."""
    with Client(url) as client:
        served = client.status().rankings
        lists = {}
        for ranking in (name for name in RANKINGS if name in served):
            say(f"POST {url}/v1/recommend  user_id={user_id} k={_LISTED} ranking={ranking}")
            answer = client.recommend(user_id=user_id, k=_LISTED, ranking=ranking)
            lists[ranking] = [dict(vars(item)) for item in answer.items]
        first = next(iter(lists.values()))[0]
        say(f"GET  {url}/v1/items/{first['item_id']}/similar?k=3")
        similar = client.similar(first["item_id"], k=3).items
    say(f"similar to {name_of(first)}: " + "; ".join(name_of(vars(x)) for x in similar))
    return lists


def truth_of(world: World, user_id: str) -> dict[str, float]:
    """Return {item_id: how much a user truly enjoys it, 0 to 1}."""
    return dict(zip(world.item_ids(), world.enjoyment(user_id).tolist(), strict=True))


def show_lists(lists: dict[str, list[dict[str, Any]]], truth: dict[str, float] | None) -> None:
    """Print a user's lists side by side, each item beside the truth if that is known."""
    say("\none user, every ranking" + (": titles beside true enjoyment, 0 to 1" if truth else ""))
    width = (_COLUMNS + 2) // len(lists) - 2
    rows = [[name.ljust(width) for name in lists], [RANKINGS[name].ljust(width) for name in lists]]
    for row in itertools.zip_longest(*lists.values()):
        rows.append([entry(item, truth, width) for item in row])
    if truth is not None:
        means = [np.mean([truth[item["item_id"]] for item in items]) for items in lists.values()]
        rows.append([beside("mean", float(mean), width) for mean in means])
    for cells in rows:
        say("  ".join(cells).rstrip())
    if truth is not None:
        say(f"mean of the whole catalogue {np.mean(list(truth.values())):.2f}")


def entry(item: dict[str, Any] | None, truth: dict[str, float] | None, width: int) -> str:
    """Return a list's entry as wide as its column."""
    if item is None:
        return " " * width
    if truth is None:
        return fit(name_of(item), width)
    title = name_of(item).partition(" (")[0]  # room for it where the genre stood
    return beside(title, truth[item["item_id"]], width)


def beside(text: str, share: float, width: int) -> str:
    """Return a text and a share, 0 to 1, at the end of a column: .42, 1.0."""
    number = f"{share:.2f}".removeprefix("0")[:3]
    return f"{fit(text, width - 4)} {number}"


def fit(text: str, width: int) -> str:
    """Return a text filled up or cut to a width."""
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"


def name_of(item: dict[str, Any]) -> str:
    """Return an item's title, or its id where it has none."""
    return str(item["title"] or item["item_id"])


def show_next(run: str, user_id: str) -> None:
    """Print the commands to go on with."""
    here, user = shlex.quote(f"run={run}"), shlex.quote(f"user_id={user_id}")
    say("\nto go on:")
    for command, what in (
        (f"raysys query {here} {user} ranking=discover", "ask from the shell"),
        (f"raysys serve {here} port=8000", "answer over HTTP"),
        (f"raysys score {here} top_k=20", "every user's list, as Parquet"),
        (f"raysys compare {here} against=ease", "is the difference to a baseline real?"),
        ("raysys look source=LOG", "what would be read of your own log"),
    ):
        say(f"  {command}\n      {what}")


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
