import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from tensorboardX.proto.event_pb2 import Event
from torch import nn

from raysys.errors import ConfigError
from raysys.training.history import shares, write_history
from raysys.training.loop import train
from raysys.training.optim import OptimConfig, global_batches, rank_rows
from raysys.training.task import Head, Ranks


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        x, y = batch
        return {"loss": ((self.slope * x - y) ** 2).mean()}


class LineTask:
    heads = (Head("error", True, ("slope",)),)

    def __init__(self, validated=True):
        self.module = Line()
        self.weights = np.ones(32)
        self.x = torch.linspace(-1, 1, 32)
        self.validated = validated

    def batch(self, rows, epoch):
        return self.x[rows], 3 * self.x[rows]

    def settle(self, metrics):
        self.settled = set(metrics)

    def validate(self, rank, world):
        if not self.validated:
            return None
        return (self.module.slope.detach() - 3).abs()

    def metrics(self, sums):
        return {"error": float(sums)}

    def start(self, choices, ranks):
        return {}

    def finish(self, choices):
        return {"told": choices.get("told", 0) + 1}

    def report(self):
        return {"error": -1.0, "length": 32.0} if self.validated else {}


OPTIM = OptimConfig(lr=0.3, epochs=40, batch_size=8, patience=3, checkpoint_steps=1)


def test_the_first_phase_chooses_the_epochs_of_the_second():
    state = train([LineTask, lambda: LineTask(validated=False)], OPTIM, seed=1, ranks=Ranks())
    first = [r for r in state["history"] if r["phase"] == 0]
    second = [r for r in state["history"] if r["phase"] == 1]
    best = min(first, key=lambda r: r["error"])
    assert state["epochs"]["error"] == best["epoch"] == len(second)
    assert best["error"] < 0.2
    assert state["metrics"]["error"] == -1  # of the finished model, as it reports it
    assert state["choices"] == {"told": 2}
    assert state["metrics"]["length"] == 32
    assert float(state["model"]["slope"]) == pytest.approx(3, abs=0.3)


def test_the_best_epoch_is_kept_as_it_was():
    state = train([LineTask], OPTIM, seed=1, ranks=Ranks())
    assert state["epochs"]["error"] < len(state["history"])  # there were worse ones after it
    error = abs(float(state["model"]["slope"]) - 3)
    assert error == pytest.approx(min(r["error"] for r in state["history"]), rel=1e-6)


@pytest.mark.parametrize("stop_after", [1, 3, 4, 10, 21])
def test_a_resumed_run_ends_with_the_same_weights(stop_after):
    phases = [LineTask, lambda: LineTask(validated=False)]
    whole = train(phases, OPTIM, seed=1, ranks=Ranks())
    saved = []

    class KilledError(Exception):
        pass

    def keep(metrics, state):
        saved.extend([] if state is None else [copy.deepcopy(state)])
        if len(saved) == stop_after:
            raise KilledError

    with pytest.raises(KilledError):
        train(phases, OPTIM, seed=1, ranks=Ranks(save=keep))
    resumed = train(phases, OPTIM, seed=1, ranks=Ranks(restored=saved[-1]))
    assert torch.equal(resumed["model"]["slope"], whole["model"]["slope"])
    assert resumed["epochs"] == whole["epochs"]
    rates = {"seconds", "time", "examples_per_s", "waiting"}
    for one, other in zip(resumed["history"], whole["history"], strict=True):
        told = one.keys() - rates
        assert {k: one[k] for k in told} == pytest.approx({k: other[k] for k in told}, rel=1e-12)


@pytest.mark.parametrize("patience", [0, 1, 5])
def test_training_ends_after_so_many_epochs_without_gain(patience):
    optim = dataclasses.replace(OPTIM, epochs=60, patience=patience)
    state = train([LineTask], optim, seed=1, ranks=Ranks())
    errors = [record["error"] for record in state["history"]]
    if patience:
        assert len(errors) < 60
        assert min(errors[-patience:]) > 0.999 * min(errors[:-patience])
    else:
        assert len(errors) == 60


def test_a_task_that_nothing_judges_keeps_its_last_epoch():
    class PlainTask:
        def __init__(self):
            line = LineTask()
            self.module, self.weights, self.batch = line.module, line.weights, line.batch

    optim = dataclasses.replace(OPTIM, epochs=4)
    state = train([PlainTask], optim, seed=1, ranks=Ranks())
    assert len(state["history"]) == 4
    assert (state["epochs"], state["metrics"], state["choices"]) == ({}, {}, {})
    judged = train([LineTask], optim, seed=1, ranks=Ranks())
    assert judged["epochs"] == {"error": 4}  # the best is the last one here
    assert torch.equal(state["model"]["slope"], judged["model"]["slope"])


def test_a_batch_in_parts_makes_the_same_step():
    whole = train([LineTask], OPTIM, seed=1, ranks=Ranks())
    parts = train([LineTask], dataclasses.replace(OPTIM, accumulate=3), seed=1, ranks=Ranks())
    torch.testing.assert_close(parts["model"], whole["model"])


def test_the_learning_rate_warms_up_and_falls_to_zero():
    optim = OptimConfig(epochs=10, warmup_epochs=2, schedule="cosine")
    factors = [optim.lr_factor(epoch) for epoch in (0, 1, 2, 5, 10, 12)]
    assert factors == pytest.approx([0, 0.4877641, 0.9045085, 0.5, 0, 0])
    assert OptimConfig().lr_factor(7.5) == 1


@pytest.mark.parametrize(("answer", "wins"), [(3.0, True), (7.0, False)])
def test_a_solution_without_training_is_taken_where_it_is_better(answer, wins):
    class SolvedTask(LineTask):
        def start(self, choices, ranks):
            self.module.slope.data = torch.tensor(answer)
            choices["solved"] = answer
            return {"error": abs(answer - 3)}

    phases = [SolvedTask, lambda: SolvedTask(validated=False)]
    state = train(phases, OPTIM, seed=1, ranks=Ranks())
    plain = train([LineTask], OPTIM, seed=1, ranks=Ranks())
    assert state["choices"]["solved"] == answer
    assert (state["epochs"]["error"] == 0) is wins
    again = train(phases, OPTIM, seed=1, ranks=Ranks(restored=dict(state)))
    torch.testing.assert_close(again["model"], state["model"])
    if wins:
        assert float(state["model"]["slope"]) == answer
        assert {record["phase"] for record in state["history"]} == {0}
    else:
        assert state["metrics"] == plain["metrics"]


def test_a_loss_that_is_not_finite_stops_before_the_update():
    class BadTask(LineTask):
        def batch(self, rows, epoch):
            x, y = super().batch(rows, epoch)
            return x, y / 0

    with pytest.raises(ConfigError, match="not finite"):
        train([BadTask], OPTIM, seed=1, ranks=Ranks())


def test_batches_cover_every_row_once_in_an_order_of_their_own():
    one = list(global_batches(100, 32, (7, 0, 0)))
    again = list(global_batches(100, 32, (7, 0, 0)))
    other = list(global_batches(100, 32, (7, 0, 1)))
    assert sorted(np.concatenate(one).tolist()) == list(range(100))
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    assert not all((a == b).all() for a, b in zip(one, other, strict=True))


def test_heavy_rows_are_dealt_out_back_and_forth():
    weights = np.array([1.0, 8, 7, 2, 3, 6, 5, 4])
    rows = np.arange(8)
    assert rank_rows(rows, weights, 0, 2).tolist() == [0, 1, 6, 7]
    assert rank_rows(rows, weights, 1, 2).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_a_batch_without_loss_and_about_evenly(world):
    rng = np.random.default_rng(5)
    weights = rng.pareto(1.5, 500) + 1
    rows = rng.permutation(500)[:64]
    shares = [rank_rows(rows, weights, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shares).tolist()) == sorted(rows.tolist())
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    loads = [weights[share].sum() for share in shares]
    assert max(loads) - min(loads) <= weights[rows].max()
    assert (rank_rows(rows, weights, 0, 1) == rows).all()  # one rank keeps the order


def test_the_history_is_written_as_lines_and_as_scalars(tmp_path):
    phases = [LineTask, lambda: LineTask(validated=False)]
    state = train(phases, OPTIM, seed=1, ranks=Ranks())
    write_history(tmp_path, state["history"])
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [r["epoch"] for r in state["history"]]
    found = {}
    for path in (tmp_path / "tensorboard" / "fit").iterdir():
        for event in RecordReader(path):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(value.simple_value)
    first = [r for r in state["history"] if r["phase"] == 0]
    assert found["val/error"] == pytest.approx([r["error"] for r in first], rel=1e-6)
    assert {"train/loss", "train/gradient_norm", "rate/examples_per_s"} <= found.keys()


class RecordReader:
    """The events of a file: length, its check sum, the record, its check sum (TFRecord)."""

    def __init__(self, path):
        self.data = path.read_bytes()

    def __iter__(self):
        at = 0
        while at < len(self.data):
            size = int.from_bytes(self.data[at : at + 8], "little")
            yield Event.FromString(self.data[at + 12 : at + 12 + size])
            at += 12 + size + 4


def test_a_head_whose_solution_is_out_of_reach_is_settled():
    class SolvedTask(LineTask):
        def start(self, choices, ranks):
            return {"error": 1e-9}

        def validate(self, rank, world):
            return super().validate(rank, world) + 1  # slower and slower towards 1

    task = SolvedTask()
    state = train([lambda: task], OPTIM, seed=1, ranks=Ranks())
    assert state["epochs"] == {"error": 0}
    assert 3 <= len(state["history"]) < OPTIM.epochs
    assert task.settled == {"error"}
    forever = dataclasses.replace(OPTIM, patience=0)
    assert len(train([SolvedTask], forever, seed=1, ranks=Ranks())["history"]) == OPTIM.epochs


def test_seconds_of_the_steps_are_told():
    seconds = train([LineTask], OPTIM, seed=1, ranks=Ranks())["seconds"]
    assert set(seconds) == {"start", "closed form", "epochs", "finish"}
    assert min(seconds.values()) >= 0
    assert shares({"one": 3.0, "two": 1.0}) == "seconds=4.0: one=3.0 (75%), two=1.0 (25%)"
