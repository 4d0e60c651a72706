import dataclasses
from typing import Any

import pytest

from raysys import cli, reference
from raysys.config import JobConfig, local, location, require

SCHEMAS = {title: schema for name in cli.COMMANDS for title, schema in cli.schemas(name).items()}


@dataclasses.dataclass
class Optim:
    """Settings of an optimiser.

    Attributes:
        lr: learning rate.
        kind: which one.
    """

    lr: float = 0.1
    kind: str = "adam"

    def __post_init__(self):
        require(0 < self.lr < 1, "optim.lr", self.lr, "between 0 and 1")
        require(self.kind in ("adam", "sgd"), "optim.kind", self.kind, "adam or sgd")


@dataclasses.dataclass
class Config(JobConfig):
    """Settings of a command
    on two lines.

    Attributes:
        first, second: two numbers whose sentence is so long that it goes on
            in another line: there.
        sizes: whole numbers.
        allow: conditions.
        where: a folder.
        optim: its training.
    """

    first: int = 1
    second: float | None = None
    sizes: list[int] = dataclasses.field(default_factory=lambda: [1, 2])
    allow: dict[str, Any] = dataclasses.field(default_factory=dict)
    where: str | None = location(None)
    quiet: bool = local(True)
    optim: Optim = dataclasses.field(default_factory=lambda: Optim(lr=0.5))

    def __post_init__(self):
        require(all(size >= 1 for size in self.sizes), "sizes", self.sizes, "1 or more each")


def keys(schema):
    return {key.name: key for section in reference.sections(schema) for key in section.keys}


def dotted(cfg, prefix=""):
    for field in dataclasses.fields(cfg):
        value = getattr(cfg, field.name)
        if dataclasses.is_dataclass(value):
            yield from dotted(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def test_a_key_has_type_default_range_and_sentence():
    own = keys(Config)
    assert own["optim.lr"] == reference.Key(
        "optim.lr", "number", "0.5", "between 0 and 1", "learning rate.", True
    )
    assert own["optim.kind"].accepted == "adam or sgd"
    assert own["sizes"].type == "list of whole numbers"
    assert own["sizes"].default == "[1,2]"
    assert own["sizes"].accepted == "1 or more each"
    assert own["second"].type == "number or null"
    assert own["second"].default == "null"
    assert own["allow"].type == "mapping"
    assert own["where"].type == "path or URI or null"
    assert own["quiet"].default == "true"


def test_a_sentence_may_be_shared_wrapped_or_inherited():
    own = keys(Config)
    said = "two numbers whose sentence is so long that it goes on in another line: there."
    assert own["first"].sentence == own["second"].sentence == said
    assert own["seed"].sentence == keys(JobConfig)["seed"].sentence != ""
    assert own["quiet"].sentence == ""


def test_a_key_tells_whether_it_decides_what_is_built():
    own = keys(Config)
    assert own["optim.lr"].decides
    assert not own["quiet"].decides
    assert not own["ray.num_cpus"].decides  # its section is local


def test_sections_stand_apart():
    top, ray, optim = reference.sections(Config)
    assert (top.name, top.sentence) == ("", "Settings of a command on two lines.")
    assert (ray.name, optim.name, optim.sentence) == ("ray", "optim", "its training.")


@pytest.mark.parametrize("title", SCHEMAS)
def test_every_key_of_every_command_has_a_sentence(title):
    own = keys(SCHEMAS[title])
    assert list(own.values())
    assert [name for name, key in own.items() if not key.sentence] == []
    assert set(own) == set(dotted(SCHEMAS[title]()))


@pytest.mark.parametrize("title", SCHEMAS)
def test_help_has_every_key_with_its_sentence(title, capsys, caplog):
    words = title.split()[1:]
    assert cli.main([*words, "--help"]) == 0
    assert not caplog.records
    out = capsys.readouterr().out
    text = " ".join(out.split())
    for key in keys(SCHEMAS[title]).values():
        assert " ".join(f"{key.name}={key.default}".split()) in text
        assert " ".join(key.sentence.split()) in text
    assert max(len(line) for line in out.splitlines()) <= 100


def test_help_of_bench_names_the_suites(capsys):
    assert cli.main(["bench", "--help"]) == 0
    assert "raysys bench suite=codes --help" in capsys.readouterr().out
