"""The volume suite, without a cluster."""

from raysys.bench import volume
from raysys.bench.prepare import Measured
from raysys.bench.volume import VolumeBenchConfig
from raysys.config import load


def test_volume(tmp_path, monkeypatch):
    asked = []

    def measure(work, folder, *rest):
        asked.append((work.__name__, rest[0] if len(rest) > 1 else None))
        world = volume.Path(folder) / "world" / "interactions"
        world.mkdir(parents=True, exist_ok=True)
        (world / "part").write_bytes(b"x" * 8000)
        return Measured(seconds=2.0, total_s=3.0, cpu_s=4.0, peak_bytes=5 << 20, rows=4000)

    monkeypatch.setattr(volume, "measure", measure)
    words = [f"run={tmp_path}", "sizes=[4000]", "rows_per_user=40", "n_items=500"]
    rows = volume.rows(load(VolumeBenchConfig, words))
    settings = {"n_interactions": 4000, "n_users": 100, "n_items": 500, "seed": 0}
    assert asked == [("_simulate", settings), ("_prepare", None)]
    assert [row["step"] for row in rows] == ["simulate", "prepare"]
    assert rows[0]["rows_per_cpu_s"] == 1000
    assert [row["written_bytes_per_row"] for row in rows] == [2.0, 0.0]
    assert not [*(tmp_path / "bench-volume").iterdir()]
