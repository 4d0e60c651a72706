"""A headless Chromium and apps on loopback, for tests of what people see."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time

import pytest
import uvicorn

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def chromium():
    """Start the system's Chromium, or skip; playwright brings none of its own here."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e .[dev]")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    sandbox = os.geteuid() != 0  # which Chromium refuses to root
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=sandbox)
        yield browser
        browser.close()


@contextlib.contextmanager
def serving(app, *, prefix=""):
    """Serve an app below a prefix, as a replica of Ray Serve does, and give its URL."""

    async def below(scope, receive, send):
        await app(scope | {"root_path": prefix}, receive, send)

    config = uvicorn.Config(below, host="127.0.0.1", port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}{prefix}"
    server.should_exit = True
    thread.join()
