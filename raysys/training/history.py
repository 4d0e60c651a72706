"""What training reported, epoch by epoch: as JSON lines and as TensorBoard scalars."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HISTORY_FILE = "history.jsonl"
SCALARS_FOLDER = "tensorboard"
_POSITION = ("phase", "epoch", "time")
_RATES = ("seconds", "examples_per_s", "waiting")


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds of the block to those of a step."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started


def shares(seconds: dict[str, float]) -> str:
    """Return the seconds of steps, each with its share of the whole, as one log line."""
    whole = max(sum(seconds.values()), 1e-9)
    parts = [f"{name}={s:.1f} ({s / whole:.0%})" for name, s in seconds.items()]
    return f"seconds={whole:.1f}: {', '.join(parts)}"


def write_history(folder: Path, history: Sequence[dict[str, Any]]) -> None:
    """Write `history.jsonl` and, for `tensorboard --logdir`, the same scalars below `tensorboard/`.

    Args:
        folder: where to.
        history: one record per epoch as `training.loop.train` returns them.
    """
    lines = (json.dumps(record, sort_keys=True) + "\n" for record in history)
    (folder / HISTORY_FILE).write_text("".join(lines))
    from tensorboardX import SummaryWriter

    for phase in sorted({record["phase"] for record in history}):
        name = "fit" if phase == 0 else "refit"
        with SummaryWriter(str(folder / SCALARS_FOLDER / name)) as writer:
            for record in (record for record in history if record["phase"] == phase):
                for key in sorted(record.keys() - set(_POSITION)):
                    writer.add_scalar(_tag(key), record[key], record["epoch"], record["time"])


def read_scalars(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield (epoch, {tag: value}) of a `history.jsonl`; tags are TensorBoard's, behind the phase.

    Args:
        path: what `write_history` wrote.
    """
    for line in path.read_text().splitlines():
        record = json.loads(line)
        name = _phase(record)
        scalars = {key: record[key] for key in record.keys() - set(_POSITION)}
        yield record["epoch"], {f"{name}/{_tag(key)}": value for key, value in scalars.items()}


def _phase(record: dict[str, Any]) -> str:
    return "fit" if record["phase"] == 0 else "refit"


def _tag(key: str) -> str:
    key = key.replace("@", "_at_").replace("^", "_beta_")  # TensorBoard allows no signs
    if key in _RATES:
        return f"rate/{key}"
    return f"train/{key}" if key.endswith("loss") or key == "gradient_norm" else f"val/{key}"


def headline(record: dict[str, float], best: dict[str, dict[str, Any]]) -> str:
    """Return in a few words how good a model is: its best values so far, else its loss.

    Args:
        record: of the last epoch.
        best: {metric: value and epoch}; a metric that was not validated is not in the record.
    """
    values = [f"{k} {v['value']:.4g} at {v['epoch']}" for k, v in best.items() if k in record]
    return "best " + ", ".join(values) if values else f"loss {record['loss']:.4g}"
