"""What is published is what a whole training would give."""

import dataclasses

import torch

from raysys.autoencoder.files import AutoencoderFacts
from raysys.commands.train import fit, train_builds
from raysys.training.task import chosen
from tests.support.training import config, planted_run


def test_a_refit_with_what_the_candidate_chose_is_that_of_a_whole_training(tmp_path):
    workspace = planted_run(tmp_path / "run")
    profiles = workspace.current("profiles")
    cfg = dataclasses.replace(config(workspace), refit="all")
    candidate = fit(dataclasses.replace(cfg, refit="val"), workspace, profiles, name="candidate")
    whole = fit(cfg, workspace, profiles, name="whole")
    found = chosen(candidate["epochs"], candidate["metrics"], candidate["choices"])
    short = fit(cfg, workspace, profiles, name="short", chosen=found)
    assert {record["phase"] for record in short["history"]} <= {1}
    assert {record["phase"] for record in whole["history"]} >= {0}
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, short["model"][name]), name
    for name in ("epochs", "choices", "metrics"):
        assert whole[name] == short[name], name


def test_a_training_that_begins_at_an_earlier_model_is_another_build(tmp_path):
    workspace = planted_run(tmp_path / "run")
    cfg = config(
        workspace, "model=autoencoder", "refit=none", "autoencoder.consume_loss=likelihood"
    )
    cold = train_builds(cfg, workspace)[0]
    short = dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, epochs=1))
    once = train_builds(short, workspace)[0]
    warm = train_builds(short, workspace, begin=cold)[0]
    assert len({cold.build_id, once.build_id, warm.build_id}) == 3
    assert warm.manifest.config["begin"] == cold.ref()
    nll = [AutoencoderFacts.of(build).val_metrics["nll"] for build in (once, warm)]
    assert nll[1] < nll[0]
    assert train_builds(short, workspace, begin=cold)[0].build_id == warm.build_id
