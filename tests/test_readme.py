"""The commands of README and the guides, typed as they stand: the wheel, an empty folder, a log.

Users and items form two groups, and users keep to the items of their group. So every list that
the pages ask for has a right answer.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.http.client import Client, ServiceError
from raysys.http.keys import hash_of
from tests.support import processes
from tests.support.markdown import blocks, unclear
from tests.support.wheels import ROOT, environment

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]

USERS = range(1, 201)
ITEMS = range(1000, 1280)  # enough for codes of atoms, which `explain` needs
PER_USER = 20
TITLES = {1181: "Toy Story (1995)", 1183: "Heat (1995)"}
KINDS = ["interactions", "profiles", "autoencoder", "embeddings", "compressor", "codes", "index"]
URL = "http://127.0.0.1:8000"
TIMEOUT_S = 600
START_TIMEOUT_S = 180


def group_of_item(item):
    return item % 2


def group_of_user(user):
    return (user + 1) % 2  # user 42 is in the group of item 1193


def is_comedy(item):
    return item // 2 % 2 == 0


def write_log(folder):
    draw = random.Random(0)
    pairs = []
    for user in USERS:
        own = [item for item in ITEMS if group_of_item(item) == group_of_user(user)]
        pairs += [(user, item, draw.choice([4, 5])) for item in draw.sample(own, PER_USER - 1)]
        other = draw.choice([item for item in ITEMS if item not in own])
        pairs.append((user, other, draw.choice([1, 2])))
    draw.shuffle(pairs)
    rows = [
        {"user_id": str(user), "item_id": str(item), "rating": rating, "timestamp": 3600 * hour}
        for hour, (user, item, rating) in enumerate(pairs, start=400_000)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "logs.parquet")
    items = [
        {
            "item_id": str(item),
            "title": TITLES.get(item, f"Film {item}"),
            "genres": "Comedy|Drama" if is_comedy(item) else "Crime",
        }
        for item in ITEMS
    ]
    pq.write_table(pa.Table.from_pylist(items), folder / "items.parquet")


class Shell:
    """A folder in which commands are typed; a server holds a terminal of its own."""

    def __init__(self, folder, commands):
        self.folder = folder
        self._env = environment(commands)
        self._server = None

    def run(self, command):
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
        return done.stdout

    def serve(self, command):
        """Start a server and wait until it answers."""
        assert not is_listening(), "something listens on the pages' port 8000 already"
        with (self.folder / "server.out").open("w") as out, (self.folder / "err").open("w") as err:
            self._server = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self.folder,
                env=self._env,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        with Client(URL) as client:
            while time.monotonic() < deadline:
                assert self._server.poll() is None, (self.folder / "err").read_text()[-3000:]
                with contextlib.suppress(ServiceError):
                    return client.health()
                time.sleep(0.5)
        raise AssertionError((self.folder / "err").read_text()[-3000:])

    def interrupt(self):
        """Press Ctrl-C where the server runs; return its exit status and what it printed."""
        os.killpg(self._server.pid, signal.SIGINT)
        status = self._server.wait(timeout=60)
        return status, (self.folder / "server.out").read_text()

    def close(self):
        if self._server is not None and self._server.poll() is None:
            processes.end(processes.tree(self._server.pid))
            self._server.wait()


def is_listening():
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", 8000)) == 0


@pytest.fixture
def shell(tmp_path, wheel_commands):
    write_log(tmp_path)
    shell = Shell(tmp_path, wheel_commands)
    yield shell
    shell.close()


def items_of(table):
    """Return the item numbers of a table of `raysys query`, which come behind the rank."""
    return [int(line.split()[1]) for line in table.strip().splitlines()[1:]]


def check_group(items, group, *, share=0.8):
    ours = [item for item in items if group_of_item(item) == group]
    assert len(set(items)) == len(items)
    assert len(ours) >= share * len(items), items


def check_look(shell, out):
    facts = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert facts["rows"][0] == f"{PER_USER * len(USERS):,}"
    assert facts["users"] == [f"{len(USERS):,}"]
    assert facts["items"] == [f"{len(ITEMS):,}"]
    command = "raysys prepare run=RUN source=logs.parquet items=items.parquet"
    assert out.splitlines()[-1] == command


def check_pipeline(shell, out):
    record = json.loads(out)
    assert list(record["build_ids"]) == KINDS
    for kind, build_id in record["build_ids"].items():
        assert (shell.folder / "runs" / "first" / kind / build_id / "manifest.json").is_file()
    assert record["metrics"]["recall@20"]["mean"] > 20 / len(ITEMS)
    write_queries(shell.folder)


def write_queries(folder):
    """Save two items' own vectors as the queries.npy that the guide asks with."""
    [embeddings] = (folder / "runs" / "first" / "embeddings").glob("*/vectors.npy")
    [manifest] = (folder / "runs" / "first" / "autoencoder").glob("*/manifest.json")
    latent = json.loads(manifest.read_text())["config"]["autoencoder"]["latent"]
    np.save(folder / "queries.npy", np.load(embeddings)[:2, :latent])


def check_recommended(shell, out):
    items = json.loads(out)["items"]
    assert len(items) == 5
    check_group([int(item["item_id"]) for item in items], group_of_user(42))


def check_liked(shell, out):
    items = items_of(out)
    assert len(items) == 10
    check_group(items, group_of_user(42))


def check_titles(shell, out):
    items = items_of(out)
    assert len(items) == 20
    assert all(is_comedy(item) for item in items)
    assert "P(level)" in out.splitlines()[0]
    check_group(items, group_of_item(1181))


def check_similar(shell, out):
    items = items_of(out)
    assert 1193 not in items
    check_group(items, group_of_item(1193))


def check_vectors(shell, out):
    [path] = (shell.folder / "runs" / "first" / "embeddings").glob("*/items.parquet")
    own = pq.read_table(path)["item_id"].to_pylist()[:2]
    assert [items_of(table)[0] for table in out.split("\n\n")] == [int(item) for item in own]


def check_explained(shell, out):
    lines = out.splitlines()
    assert lines[0].split()[0] == "atom"
    assert len(lines) > 2
    assert lines[-1].startswith("other atoms")


def check_key(shell, out):
    secret = out.strip()
    assert secret.startswith("rs_")
    written = (shell.folder / "keys.yaml").read_text()
    assert hash_of(secret) in written
    assert secret not in written


CHECKS = {
    "raysys serve key keys=keys.yaml": check_key,
    "raysys look source=logs.parquet": check_look,
    "raysys pipeline run=runs/first source=logs.parquet items=items.parquet": check_pipeline,
    "curl -s localhost:8000/v1/recommend": check_recommended,
    "raysys query run=runs/first user_id=42 ranking=like": check_liked,
    "raysys query run=runs/first 'titles=[Toy Story": check_titles,
    "raysys query run=runs/first similar_to=1193": check_similar,
    "raysys query run=runs/first vectors=queries.npy": check_vectors,
    "raysys query run=runs/first user_id=42 explain=1193": check_explained,
}
SERVERS = ("raysys serve run=", "serve run ")


def commands_to_run():
    """Return (page and line of the block, command): README's, then those of the guides."""
    found = [(page.name, block) for page in PAGES for block in blocks(page.read_text())]
    shells = [(name, block) for name, block in found if block.info == "sh" and not block.excerpt]
    return [(f"{name}:{block.line}", line) for name, block in shells for line in block.commands]


def check_of(command):
    matches = [check for start, check in CHECKS.items() if command.startswith(start)]
    return matches[0] if len(matches) == 1 else None


def test_every_block_is_run_or_marked():
    assert {
        page.name: unclear(page.read_text()) for page in PAGES if unclear(page.read_text())
    } == {}
    unknown = [
        (place, command)
        for place, command in commands_to_run()
        if not command.startswith(SERVERS) and check_of(command) is None
    ]
    assert unknown == []


def test_an_unmarked_block_is_noticed():
    page = "a\n```\nls\n```\n```sh\nls \\\n  -l\n# why\ncd\n```\n"
    page += "<!-- excerpt: it deletes -->\n```sh\nrm\n```\n"
    assert unclear(page) == [2]
    _, typed, marked = blocks(page)
    assert typed.commands == ["ls    -l", "cd"]
    assert (typed.excerpt, marked.excerpt) == (False, True)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_newcomer_types_the_pages(shell):
    serving = None
    for _, command in commands_to_run():
        if not command.startswith(SERVERS):
            check_of(command)(shell, shell.run(command))
            continue
        if serving is not None:
            stop(shell, serving)
        shell.serve(command)
        serving = command
    assert serving is not None
    with Client(URL) as client:
        items = client.recommend(user_id="42", k=5).items
    check_group([int(item.item_id) for item in items], group_of_user(42))
    stop(shell, serving)


def stop(shell, command):
    status, out = shell.interrupt()
    assert status == 0, command
    if command.startswith("raysys"):
        assert "index" in json.loads(out)["build_ids"]
    assert not is_listening()
