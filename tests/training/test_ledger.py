"""What a training states of its time, memory and rows."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raysys.training import ledger
from raysys.training.loop import train
from raysys.training.optim import OptimConfig
from raysys.training.task import Ranks

MB = 1 << 20


def hold(n_bytes):
    return np.ones(n_bytes // 8).sum()


def test_a_peak_is_that_of_one_training_in_a_process_that_lives_on():
    hold(400 * MB)
    before = ledger.peak_bytes()
    ledger.reset_peak()
    now = ledger.peak_bytes()
    assert now < before - 300 * MB
    hold(200 * MB)
    assert 190 * MB < ledger.peak_bytes() - now < 260 * MB


def test_without_a_status_file_the_systems_own_peak_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(ledger, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(ledger, "_RESET", tmp_path / "gone" / "clear_refs")
    monkeypatch.setattr(ledger.sys, "platform", "linux")
    ledger.reset_peak()
    expected = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert ledger.peak_bytes() == pytest.approx(expected, rel=0.01)
    (tmp_path / "status").write_text("Name: x\n")  # a system that tells no VmHWM
    assert ledger.peak_bytes() == pytest.approx(expected, rel=0.01)


def test_the_record_says_what_the_loop_passed():
    state = {"seconds": {"start": 1.0, "epochs": 3.0}, "rows": 400, "world": 2}
    state["peaks"] = {"peak_bytes": 7 * MB}
    record = ledger.of_state(state, seconds=6.5)
    assert record == {
        "seconds": 6.5,
        "worker_seconds": 8.0,
        "workers": 2,
        "rows": 400,
        "rows_per_s": 100.0,
        "peak_bytes": 7 * MB,
    }
    assert ledger.of_state(state | {"world": 1}, seconds=6.5)["worker_seconds"] == 4.0
    assert "worker_seconds=8.0 workers=2 peak_mb=7 rows=400 rows_per_s=100" in ledger.line(record)
    both = ledger.totals([record, record | {"peak_bytes": 9 * MB, "seconds": 1.0}])
    assert both == {"training_seconds": 7.5, "worker_seconds": 16.0, "peak_bytes": 9 * MB}
    assert ledger.totals([])["peak_bytes"] == 0


class Squares(torch.nn.Linear):
    def forward(self, batch):
        return {"loss": super().forward(batch).square().mean()}


class Few:
    """Eight rows, no validation."""

    def __init__(self):
        self.module = Squares(1, 1)
        self.weights = np.ones(8)

    def batch(self, rows, epoch):
        return torch.ones(len(rows), 1)


def test_the_loop_counts_rows_of_all_phases():
    optim = OptimConfig(epochs=3, batch_size=4, patience=0)
    state = train([Few, Few], optim, seed=0, ranks=Ranks())
    assert state["rows"] == 2 * 3 * 8
    assert state["peaks"]["peak_bytes"] > 10 * MB
    old = {"phase": 0, "epoch": 2, "step": 0, "sums": {}, "history": [], "best": {}, "epochs": {}}
    old |= {"metrics": {}, "choices": {}, "seconds": {}}  # saved before rows were counted
    state = train([Few], optim, seed=0, ranks=Ranks(restored=old))
    assert state["rows"] == 8


def _rank(rank, rendezvous, out):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    ledger.reset_peak()
    hold((100 + 400 * rank) * MB)
    found = ledger.worst(Ranks(rank=rank, world=2, total=dist.all_reduce))
    own = torch.tensor(ledger.peak_bytes())
    torch.save((found, own), f"{out}{rank}")
    dist.barrier()
    dist.destroy_process_group()


def test_the_largest_peak_of_the_workers_counts(tmp_path):
    out = tmp_path / "peaks"
    mp.spawn(_rank, args=(str(tmp_path / "rendezvous"), str(out)), nprocs=2)
    (first, own), (second, larger) = (
        torch.load(f"{out}{rank}", weights_only=True) for rank in (0, 1)
    )
    assert first == second
    assert int(own) + 300 * MB < first["peak_bytes"] <= int(larger)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpus_memory_is_told_beside_the_hosts():
    device = torch.device("cuda", 0)
    torch.ones(1, device=device)
    ledger.reset_peak()
    torch.ones(64 * MB, dtype=torch.uint8, device=device)
    peaks = ledger.worst(Ranks(device=device))
    assert 64 * MB <= peaks["gpu_peak_bytes"] < 80 * MB
    assert peaks["peak_bytes"] > 64 * MB
