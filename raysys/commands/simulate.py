"""simulate: write a log with a known truth to `<run>/world`.

world/interactions/part-00000.parquet   the log, one file per block of users
world/items.parquet                     item_id, title, genre, released
world/world.json, world/truth/*.npy     the truth, see `raysys.simulate.world.World`
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import secrets
import shutil
from pathlib import Path

from raysys.cluster.tasks import task_runner
from raysys.config import JobConfig, digest, require, require_run
from raysys.errors import ConfigError
from raysys.simulate.world import World, WorldSpec, n_blocks, write_block
from raysys.store.builds import StageResult
from raysys.store.leases import leased
from raysys.store.storage import Storage

log = logging.getLogger(__name__)


@dataclasses.dataclass
class SimulateConfig(WorldSpec, JobConfig):
    """Settings of simulate: those of the world."""

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes that make no world."""
        for key in ("n_users", "n_items", "n_tastes", "days"):
            least = 1 if key in ("n_tastes", "days") else 10
            require(getattr(self, key) >= least, key, getattr(self, key), f">= {least}")
        per_user = self.n_interactions / self.n_users
        require(per_user >= 1, "n_interactions", self.n_interactions, "at least n_users")
        most = self.n_items / 4
        require(per_user <= most, "n_interactions", self.n_interactions, "<= n_users * n_items / 4")


def simulate(cfg: SimulateConfig) -> StageResult:
    """Write a simulated world; a world with the same settings is kept as it is.

    Raises:
        ConfigError: `run` is not a local folder.
    """
    require_run(cfg)
    if "://" in cfg.run:
        raise ConfigError(f"run={cfg.run}: simulate writes to a local folder only")
    folder = Path(cfg.run).expanduser().absolute() / "world"
    names = [field.name for field in dataclasses.fields(WorldSpec)]
    spec = WorldSpec(**{name: getattr(cfg, name) for name in names})
    with leased(Storage(cfg.run), "world"):
        rows = _rows_of(folder, spec)
        if rows is None or cfg.force:
            rows = _write(cfg, spec, folder)
    extra = {
        "source": str(folder / "interactions"),
        "items": str(folder / "items.parquet"),
        "world": str(folder),
        "rows": rows,
        "world_id": digest(dataclasses.asdict(spec)),
    }
    return StageResult(extra=extra)


def _write(cfg: SimulateConfig, spec: WorldSpec, folder: Path) -> int:
    partial = folder.with_name(f".world.{secrets.token_hex(4)}")
    (partial / "interactions").mkdir(parents=True)
    try:
        world = World.make(spec)
        world.save(partial)
        write = functools.partial(write_block, world=world, folder=str(partial / "interactions"))
        with task_runner(cfg.ray, size=spec.n_interactions) as run:
            counts = list(run(write, range(n_blocks(spec)), stage="simulate", rows=int))
        (partial / "rows.json").write_text(json.dumps({"rows": sum(counts)}) + "\n")
        before = folder.with_name(f"{partial.name}.before")
        if folder.exists():
            folder.rename(before)
        partial.rename(folder)
        shutil.rmtree(before, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    log.info("world written path=%s rows=%d", folder, sum(counts))
    return sum(counts)


def _rows_of(folder: Path, spec: WorldSpec) -> int | None:
    """Return the rows of the world that is there, None if there is none or another."""
    try:
        found = WorldSpec(**json.loads((folder / "world.json").read_text()))
        rows = int(json.loads((folder / "rows.json").read_text())["rows"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return rows if found == spec else None
