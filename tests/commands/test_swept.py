"""Which keys a sweep may try."""

import dataclasses

import pytest

from raysys.commands.swept import check_swept
from raysys.errors import ConfigError
from raysys.prepare.config import PrepareConfig


def test_keys_of_models_codes_and_indexes_are_swept():
    check_swept(["optim.lr", "optim.epochs", "autoencoder.profile_half_life_days", "horizon_days"])
    check_swept(["compressor.n_active", "compressor.keep", "compressor.optim.lr"])
    check_swept(["index.kind", "index.n_lists", "index.effort"])
    check_swept(["prepare.liked_levels", "prepare.negative_events"])


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("prepare.val_cut", "moves the targets"),
        ("prepare.seed", "moves the targets"),
        ("prepare.min_user_rows", "users and the catalogue"),
        ("prepare.dedupe", "which rows of the log count"),
        ("prepare.columns.user", "which rows of the log count"),
        ("prepare.source", "where or how fast"),
        ("launch.workers", "where or how fast"),
        ("ray.num_cpus", "where or how fast"),
        ("index.cache_dir", "where or how fast"),
        ("seed", "finalists are repeated"),
        ("refit", "validation period"),
        ("optim.lrr", "did you mean"),
        ("prepare.val_cutt", "did you mean"),
        ("index.kinds", "did you mean"),
    ],
)
def test_a_key_that_cannot_be_swept_is_named_with_the_reason(key, reason):
    with pytest.raises(ConfigError, match=rf"space\.{key}.*{reason}"):
        check_swept([key])


def test_no_key_of_prepare_is_swept_but_those_that_leave_validation_alone():
    swept = []
    for field in dataclasses.fields(PrepareConfig):
        try:
            check_swept([f"prepare.{field.name}"])
        except ConfigError:
            continue
        swept.append(field.name)
    assert swept == ["liked_levels", "negative_events"]
