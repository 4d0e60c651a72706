"""The agreement suite: on a table of the user's, and on two small simulated sites."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from raysys.autoencoder.config import Conv4RecConfig
from raysys.bench import agreement, contenders
from raysys.bench.agreement import AgreementBenchConfig
from raysys.config import load
from raysys.errors import ConfigError


def test_a_table_of_models_and_outcomes(tmp_path):
    path = tmp_path / "models.csv"
    rng = np.random.default_rng(0)
    ctr = rng.random(12)
    pc.write_csv(
        pa.table(
            {
                "site": np.repeat(["a", "b", "c"], 4),
                "ctr": ctr,
                "good@5": ctr + 1,
                "good@10": 2 * ctr,
                "bad@5": -ctr,
            }
        ),
        path,
    )
    words = [f"table={path}", "online=ctr", "system=site", "reference=bad@K", "replicates=50"]
    good, bad = agreement.rows(load(AgreementBenchConfig, words))
    assert (good["metric"], good["picked"], good["cells"]) == ("good@K", 6, 6)
    assert (good["share"], good["gain"], good["kendall_tau"], good["regret"]) == (1, 1, 1, 0)
    assert (bad["picked"], bad["gain"], bad["chance"]) == (0, 0, 0.25)
    [only] = agreement.rows(load(AgreementBenchConfig, [*words, "metrics=[bad@5]"]))
    assert only["metric"] == "bad@K"


def test_simulated_sites(tmp_path, monkeypatch):
    monkeypatch.setattr(contenders, "_DEEP", {"conv4rec": Conv4RecConfig(latent=4)})
    monkeypatch.setattr(contenders._OPTIM, "epochs", 2)
    cfg = AgreementBenchConfig(
        run=str(tmp_path),
        bias=[1.0],
        drift=[0.5],
        feedback=[0.0, 0.5],
        repeats=1,
        n_users=150,
        n_items=80,
        n_interactions=2400,
        replicates=50,
    )
    rows = agreement.rows(cfg)
    table = pq.read_table(tmp_path / "bench-agreement/worlds.parquet")
    assert table.num_rows == 2 * 7
    assert set(table["feedback"].to_pylist()) == {0.0, 0.5}
    assert all(0 < rate < 1 for rate in table["ctr"].to_pylist())
    best = max(table["lloo.recall@20^0"].to_pylist())
    assert 0.1 < best <= 1
    whole = [row for row in rows if row["sites"] == "all" and "picked" in row]
    assert len(whole) == 3 * 10  # protocols x (exponents and the mean over users)
    assert {row["cells"] for row in whole} == {2 * 14}
    assert {row["sites"] for row in rows} > {"bias=1", "feedback=0", "feedback=0.5"}
    assert [r["metric"] for r in rows[-3:]] == [f"{p}.recall@K" for p in ("cutoff", "lloo", "loo")]
    assert (tmp_path / "bench-agreement/agreement.png").stat().st_size > 10_000
    again = agreement.simulate(cfg)
    assert again == table


@pytest.mark.parametrize("words", [["bias=[]"], ["feedback=[2]"], ["repeats=0"], ["n_users=10"]])
def test_settings_out_of_range_are_refused(words):
    with pytest.raises(ConfigError, match=words[0].partition("=")[0]):
        load(AgreementBenchConfig, words)
