"""The log of a planted world week by week, and a run that serves a model of its first weeks."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysys.autoencoder.config import Conv4RecConfig
from raysys.cluster.train_workers import LaunchConfig
from raysys.commands.index import IndexConfig, index
from raysys.commands.prepare import prepare
from raysys.commands.train import TrainConfig, train_builds
from raysys.prepare.config import PrepareConfig
from raysys.simulate.world import DAY, START, n_blocks
from raysys.store.builds import Workspace
from raysys.training.optim import OptimConfig

LAUNCH = LaunchConfig(workers=0)


def weeks_of(world):
    """Return the log week by week."""
    rows = pa.concat_tables([world.log_block(block) for block in range(n_blocks(world.spec))])
    week = pc.divide(pc.subtract(rows["timestamp"], START), 7 * DAY)
    return [rows.filter(pc.equal(week, number)) for number in range(world.spec.days // 7)]


def shuffled(rows, columns, seed):
    """Return rows whose values of some columns are shuffled, each column by itself."""
    rng = np.random.default_rng(seed)
    for name in columns:
        values = rows[name].take(pa.array(rng.permutation(len(rows))))
        rows = rows.set_column(rows.column_names.index(name), name, values)
    return rows


def first_run(run, source, model, optim):
    """Make what is served first, as the pipeline does; sizes of the model and its training."""
    prepare(PrepareConfig(run=run, source=str(source)))
    cfg = TrainConfig(
        run=run,
        autoencoder=Conv4RecConfig(**model),
        optim=OptimConfig(**optim),
        launch=LAUNCH,
    )
    train_builds(cfg, Workspace(run))
    index(IndexConfig(run=run))
