import dataclasses

import pytest

from raysys.config import JobConfig, digest, identity, load, local, require
from raysys.errors import ConfigError, DataError, find_cause


@dataclasses.dataclass
class Optim:
    lr: float = 0.1
    epochs: int = 3

    def __post_init__(self):
        require(self.lr > 0, "optim.lr", self.lr, "a positive number")


@dataclasses.dataclass
class Config(JobConfig):
    optim: Optim = dataclasses.field(default_factory=Optim)
    workers: int = local(2)
    sizes: list[int] = dataclasses.field(default_factory=lambda: [1, 2])


def test_later_sources_win(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("optim:\n  lr: 0.5\n  epochs: 7\n")
    cfg = load(Config, ["optim.lr=0.25", "run=somewhere", "sizes=[4]"], yaml_path=str(path))
    assert (cfg.optim.lr, cfg.optim.epochs, cfg.run, cfg.sizes) == (0.25, 7, "somewhere", [4])
    assert isinstance(cfg, Config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'"),
        ("wokers=1", "did you mean 'workers'"),
        ("optim.lr=fast", "fast"),
        ("optim.lr=-1", "optim.lr=-1.0 is not accepted: expected a positive number"),
        ("optim=3", "optim"),
        ("justaword", "key=value"),
        ("sizes=[1", "sizes"),
    ],
)
def test_bad_overrides_are_one_line(override, message):
    with pytest.raises(ConfigError) as caught:
        load(Config, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "nope: 1\n"])
def test_bad_files_are_one_line(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(Config, yaml_path=str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        load(Config, yaml_path=str(tmp_path / "nowhere.yaml"))


def test_identity_leaves_out_where_and_how_fast():
    one = identity(load(Config, ["run=a", "workers=1", "ray.address=local"]))
    two = identity(load(Config, ["run=b", "workers=4"]))
    assert one == two == {"seed": 0, "optim": {"lr": 0.1, "epochs": 3}, "sizes": [1, 2]}
    assert digest(one) != digest(identity(load(Config, ["seed=1"])))


def test_causes_are_found_inside_wrappers():
    class WrappedError(Exception):
        cause = None
        worker_failures = None

    inner = WrappedError()
    inner.cause = DataError("row 3")
    outer = WrappedError()
    outer.worker_failures = {0: inner}
    found = find_cause(outer)
    assert isinstance(found, DataError)
    assert find_cause(ValueError("x")) is None
