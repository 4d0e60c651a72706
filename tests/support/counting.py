"""A command that counts, in stages: `python -m tests.support.counting count key=value ...`."""

import contextlib
import dataclasses
import logging
import os
import sys
import time

from raysys import cli, progress
from raysys.config import JobConfig
from raysys.errors import DataError
from raysys.store.builds import StageResult

log = logging.getLogger("raysys.counting")


@dataclasses.dataclass
class CountConfig(JobConfig):
    """How far to count, and what goes wrong at the end."""

    steps: int = 20
    fail: str = ""


def count(cfg):
    with progress.stage("count", total=cfg.steps, unit="tasks") as work:
        for number in range(cfg.steps):
            time.sleep(0.02)
            work.add(rows=1000)
            if number == cfg.steps // 2:
                log.info("half way " + "and so on " * 3)
                sys.stderr.write("a warning of a library\n")
                print("noise")  # noqa: T201
        with progress.stage("inner", unit="rounds", lines=progress.STEPS) as rounds:
            for number in range(3):
                time.sleep(0.15)
                rounds.add()
                rounds.say(f"round number={number}", note=f"best {number}")
        if cfg.fail == "data":
            raise DataError("row 3 is bad")
        if cfg.fail == "bug":
            raise ZeroDivisionError("a bug")
        if cfg.fail == "wait":
            with progress.stage("wait", lines=progress.NONE):
                time.sleep(60)
        if cfg.fail == "interrupted":
            exec("raise KeyboardInterrupt")
        if cfg.fail == "stopped":
            with contextlib.suppress(KeyboardInterrupt):
                exec("raise KeyboardInterrupt")
        if cfg.fail == "killed":
            os.kill(os.getpid(), 9)
    return StageResult(build_ids={}, metrics={}, extra={"steps": cfg.steps})


COMMAND = cli.Command("tests.support.counting", "CountConfig", "count", "count")

if __name__ == "__main__":
    cli.COMMANDS["count"] = COMMAND
    raise SystemExit(cli.main(sys.argv[1:]))
