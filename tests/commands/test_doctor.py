"""Checks of the doctor that need no cluster."""

import pytest

from raysys.commands import doctor
from raysys.commands.doctor import DoctorConfig
from raysys.config import load
from raysys.errors import DataError
from tests.support.runs import vectors_run


def test_a_log_is_looked_at_where_one_is_named(small_log, tmp_path):
    assert doctor._data(DoctorConfig()) == (None, "no source= given")
    fit, finding = doctor._data(load(DoctorConfig, [f"source={small_log}"]))
    assert fit
    assert finding.endswith("log.csv: 1 file(s)")
    missing = load(DoctorConfig, [f"source={tmp_path / 'none.csv'}"])
    with pytest.raises(DataError, match="does not exist"):
        doctor._data(missing)


def test_a_run_is_written_to_and_its_builds_are_verified(tmp_path):
    vectors_run(tmp_path)
    cfg = load(DoctorConfig, [f"run={tmp_path}"])
    fit, finding = doctor._builds(cfg)
    assert fit
    assert "index" in finding
    assert "writes and reads" in doctor._storage(cfg)[1]
    assert not list(tmp_path.glob(".doctor-*"))
