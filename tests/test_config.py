import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from raysys.commands.backtest import BacktestConfig
from raysys.commands.evaluate import EvaluateConfig
from raysys.commands.index import IndexConfig
from raysys.commands.pipeline import PipelineConfig
from raysys.commands.query import QueryConfig
from raysys.commands.train import TrainConfig
from raysys.commands.update import UpdateConfig
from raysys.config import JobConfig, digest, identifier, identity, load, local, require, with_values
from raysys.errors import ConfigError, DataError, find_cause
from raysys.prepare.config import PrepareConfig


@dataclasses.dataclass
class Optim:
    lr: float = 0.1
    epochs: int = 3

    def __post_init__(self):
        require(self.lr > 0, "optim.lr", self.lr, "a positive number")


@dataclasses.dataclass
class Entry:
    item_id: str = identifier("")
    rating: float | None = None


@dataclasses.dataclass
class Config(JobConfig):
    optim: Optim = dataclasses.field(default_factory=lambda: Optim(epochs=5))
    workers: int = local(2)
    sizes: list[int] = dataclasses.field(default_factory=lambda: [1, 2])
    name: str = "plain"
    limit: int | None = 4
    note: str | None = None
    verbose: bool = False
    user_id: str | None = identifier()
    words: list[str] | None = None
    entries: list[Entry] | None = None
    allow: dict[str, Any] = dataclasses.field(default_factory=dict)


def from_file(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load(Config, yaml_path=str(path))


def test_later_sources_win(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("optim:\n  lr: 0.5\n  epochs: 7\n")
    run = str(tmp_path / "somewhere")
    cfg = load(Config, ["optim.lr=0.25", f"run={run}", "sizes=[4]"], yaml_path=str(path))
    assert (cfg.optim.lr, cfg.optim.epochs, cfg.run, cfg.sizes) == (0.25, 7, run, [4])
    assert isinstance(cfg, Config)
    assert load(Config, ["seed=1", "seed=2"]).seed == 2


def test_a_section_keeps_the_defaults_of_its_parent():
    assert load(Config, ["optim.lr=1"]).optim == Optim(1.0, 5)
    assert load(Config, ["optim={lr: 1}", "optim.epochs=9"]).optim == Optim(1.0, 9)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'"),
        ("wokers=1", "did you mean 'workers'"),
        ("run.x=1", "unknown key 'run.x'; did you mean 'run'"),
        (
            "entries=[{itemid: 3}]",
            "unknown key 'entries[0].itemid'; did you mean 'entries[0].item_",
        ),
        ("optim.lr=fast", "optim.lr='fast' is not accepted: expected a number"),
        ("optim.lr=nan", "expected a number"),
        ("optim.lr=", "optim.lr='' is not accepted"),
        ("optim.lr=-1", "optim.lr=-1.0 is not accepted: expected a positive number"),
        ("optim=3", "optim='3' is not accepted: expected a mapping"),
        ("workers=1.5", "workers='1.5' is not accepted: expected a whole number"),
        ("workers=null", "expected a whole number"),
        ("limit=few", "limit='few' is not accepted: expected a whole number or null"),
        ("verbose=maybe", "verbose='maybe' is not accepted: expected true or false"),
        ("words=view", "words='view' is not accepted: expected a list"),
        ("allow=[a]", "allow='[a]' is not accepted: expected a mapping"),
        ("sizes=[1, two]", "sizes[1]='two' is not accepted"),
        ("entries=[{item_id: a, rating: high}]", "entries[0].rating='high'"),
        ("justaword", "key=value"),
        ("=1", "key=value"),
        ("sizes=[1", "sizes='[1' cannot be read: the closing ] is missing"),
        ("sizes=[1] 2", "'2' follows after the end"),
        ("words=[a,,b]", "nothing stands before ',b]'"),
        ("words=['a]", "does not close"),
        ('words=["\\q"]', "cannot be read"),
        ('words=["a" b]', "needs a comma"),
        ("words=[a[0]]", "quotes"),
        ("allow={a}", "'a' has no value"),
        ("allow={genre:Comedy}", "blank after colon"),
        ("allow={a: 1, a: 2}", "'a' stands there twice"),
        ("words=" + "[" * 5000, "cannot be read"),
    ],
)
def test_bad_overrides_are_one_line(override, message):
    with pytest.raises(ConfigError) as caught:
        load(Config, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["a: [", "- 1\n- 2\n", "nope: 1\n", "text", "seed: 1\nseed: 2\n", "[a]: 1", "run: ~\n"]
)
def test_bad_files_are_one_line(tmp_path, text):
    with pytest.raises(ConfigError) as caught:
        from_file(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        load(Config, yaml_path=str(tmp_path / "nowhere.yaml"))


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("optim.lr=1e-3", 0.001),
        ("optim.lr=2", 2.0),
        ("workers=1_000", 1000),
        ("workers=007", 7),
        ("limit=null", None),
        ("note=null", None),
        ("note=", ""),
        ("note=~", "~"),
        ("user_id=null", "null"),
        ("user_id=0123", "0123"),
        ("user_id=${x}", "${x}"),
        ("user_id='a'", "'a'"),
        ("name=a #1: [x]", "a #1: [x]"),
        ("name=true", "true"),
        ("verbose=on", True),
        ("verbose=False", False),
        ("verbose=yes", True),
        ("verbose=0", False),
        ("words=[on, off, 011, ~, null, 1e3]", ["on", "off", "011", "~", "null", "1e3"]),
        ("words=null", None),
        ("words=[]", []),
        (
            "words=[Toy Story, \"Heat (1995)\", 'O''Brien', O'Brien, a #1, *x, &y z, !t, a: b, ]",
            ["Toy Story", "Heat (1995)", "O'Brien", "O'Brien", "a #1", "*x", "&y z", "!t", "a: b"],
        ),
        ('words=["\\x41\\e\\U0001F600\\ud83d\\ude00\\/\\n"]', ["A\x1b😀😀/\n"]),
        ("sizes=[ 0123 , 4 ]", [123, 4]),
        ("entries=[{item_id: 0123, rating: 5}, {item_id: null, rating: null}]", None),
        ('entries=[{"item_id":"a"}]', [Entry("a")]),
        ("allow={zip: 0007, year: {min: 1990}, l: [on]}", None),
        ("allow.zip=0007", {"zip": "0007"}),
        ("allow.genres=[a, b]", {"genres": ["a", "b"]}),
        ("allow.a:b.c=~", {"a:b": {"c": "~"}}),
    ],
)
def test_a_value_is_text_until_its_field_reads_it(word, value):
    special = {
        "entries": [Entry("0123", 5.0), Entry("null", None)],
        "allow": {"zip": "0007", "year": {"min": "1990"}, "l": ["on"]},
    }
    key = word.partition("=")[0]
    top = key.split(".")[0]
    cfg = load(Config, [word])
    read = cfg.optim.lr if key == "optim.lr" else getattr(cfg, top)
    expected = special.get(key) if value is None and key in special else value
    assert read == expected
    assert type(read) is type(expected)


def test_a_file_is_read_by_the_same_rule(tmp_path):
    cfg = from_file(
        tmp_path,
        "user_id: 0123\nname: on\nlimit:\nnote: 'null'\noptim: {lr: 1e-3}\n"
        "words: [on, null, 1.50]\nentries:\n- item_id: 007\n  rating: ~\n"
        "allow: {zip: 0007}\nverbose: yes\n",
    )
    assert (cfg.user_id, cfg.name, cfg.limit, cfg.note) == ("0123", "on", None, "null")
    assert (cfg.optim.lr, cfg.words, cfg.verbose) == (0.001, ["on", "null", "1.50"], True)
    assert (cfg.entries, cfg.allow) == ([Entry("007", None)], {"zip": "0007"})
    assert from_file(tmp_path, "user_id: null\n").user_id is None
    assert from_file(tmp_path, "# nothing\n") == Config()
    assert from_file(tmp_path, "optim:\n") == Config()


def test_sources_add_to_mappings(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("allow: {a: 1, b: {min: 2}}\noptim.lr: 2\n")
    cfg = load(Config, ["allow={c: 3}", "allow.b.max=4"], yaml_path=str(path))
    assert cfg.allow == {"a": "1", "b": {"min": "2", "max": "4"}, "c": "3"}
    assert cfg.optim.lr == 2.0


def test_values_from_python_are_read_by_type():
    cfg = load(Config, {"seed": 3, "optim.lr": 1, "user_id": 42, "verbose": True, "limit": None})
    assert (cfg.seed, cfg.optim.lr, cfg.user_id) == (3, 1.0, "42")
    assert (cfg.verbose, cfg.limit) == (True, None)
    with pytest.raises(ConfigError, match="name=True is not accepted: expected text"):
        load(Config, {"name": True})
    with pytest.raises(ConfigError, match=r"workers=1\.5 is not accepted"):
        load(Config, {"workers": 1.5})


def test_values_are_replaced_in_a_copy():
    cfg = load(Config, ["optim.epochs=9"])
    other = with_values(cfg, {"optim.lr": "0.5", "limit": None}, prefix="space.")
    assert (other.optim, other.limit) == (Optim(0.5, 9), None)
    assert (cfg.optim, cfg.limit) == (Optim(0.1, 9), 4)
    with pytest.raises(ConfigError, match=r"unknown key 'space\.optim\.l'"):
        with_values(cfg, {"optim.l": 1}, prefix="space.")


# What a shell can pass: an argument ends at NUL, and bytes that are no UTF-8 are not text.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(TEXT)
@example("null")
@example("[a")
@example(' "x" # y')
def test_any_text_is_an_id(text):
    asked = load(QueryConfig, [f"user_id={text}"])
    assert asked.user_id == text
    assert load(QueryConfig, [f"similar_to={text}"]).similar_to == text
    assert load(QueryConfig, [f"explain={text}"]).explain == text


@given(st.lists(TEXT))
@example(
    [
        "\x85 \u2028 ",
        "\x7f\ufeff",
        "\N{GRINNING FACE}",
    ]
)
def test_any_quoted_text_is_an_id_in_a_list(texts):
    ascii_only, as_it_is = json.dumps(texts), json.dumps(texts, ensure_ascii=False)
    in_yaml = yaml.dump(texts, default_style='"', default_flow_style=True, width=10**9)
    single = "[" + ",".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"
    for spelled in (ascii_only, as_it_is, in_yaml, single):
        assert load(UpdateConfig, [f"delete={spelled}"]).delete == texts
    ids = [text for text in texts if text]  # an empty one is no id, over HTTP neither
    entries = json.dumps([{"item_id": text} for text in ids])
    assert [e.item_id for e in load(QueryConfig, [f"profile={entries}"]).profile] == ids


PLAIN = TEXT.filter(lambda t: t == t.strip(" \t\r\n") and not set(t) & set(",[]{}") and t)


@given(st.lists(PLAIN.filter(lambda text: text[0] not in "'\"")))
def test_text_without_marks_needs_no_quotes(texts):
    assert load(UpdateConfig, [f"delete=[{', '.join(texts)}]"]).delete == texts


@given(TEXT.filter(lambda text: "://" not in text and not text.startswith("~")))
@example("runs/a #1")
@example("007")
@example("a: b.csv")
@example("null")
def test_any_text_is_a_path(text):
    cfg = load(PrepareConfig, [f"run={text}", f"source={text}"])
    assert cfg.source == text
    assert cfg.run == (str(Path.cwd() / text) if text else "")


@given(TEXT.filter(lambda text: text != "null"))
@example(" item_id")
def test_any_text_is_a_column_name(text):
    cfg = load(PrepareConfig, [f"columns.{name}={text}" for name in ("user", "item", "event")])
    assert (cfg.columns.user, cfg.columns.item, cfg.columns.event) == (text,) * 3


def test_locations_become_absolute_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    def run(text):
        return load(Config, [f"run={text}"]).run

    assert run("runs/first/") == f"{tmp_path}/runs/first"
    assert run("link/a") == f"{tmp_path}/link/a"
    assert run("~/a") == "/home/ann/a"
    assert run("../a") == f"{tmp_path}/../a"
    assert run("file:///data/a%20b") == "/data/a b"
    assert run("file:///data/a?b") == "file:///data/a?b"
    for text in ("s3://bucket/run/", "", "/a"):
        assert run(text) == text
    cfg = load(Config, ["cache_dir=c"])
    assert cfg.cache_dir == f"{tmp_path}/c"
    assert load(Config).cache_dir is None


def test_identity_leaves_out_where_and_how_fast():
    one = identity(load(Config, ["run=a", "workers=1", "ray.address=local", "words=[a]"]))
    two = identity(load(Config, ["run=b", "workers=4", "words=[a]"]))
    assert one == two
    assert one["optim"] == {"lr": 0.1, "epochs": 5}
    assert not {"run", "cache_dir", "workers", "ray"} & set(one)
    assert digest(one) != digest(identity(load(Config, ["seed=1", "words=[a]"])))


@dataclasses.dataclass
class Grown:
    """A section with keys of before."""

    RENAMED = {"speed": "rate"}
    GONE = {"noise": "set rate= instead"}

    rate: float = 1.0


@dataclasses.dataclass
class GrownConfig(JobConfig):
    RENAMED = {"older": "grown"}

    grown: Grown = dataclasses.field(default_factory=Grown)


@pytest.mark.parametrize("key", ["grown.speed", "older.speed", "older.rate"])
def test_an_old_name_is_read_with_a_warning(tmp_path, caplog, key):
    for text in (f"{key}=3", None):
        section, name = key.split(".")
        (tmp_path / "c.yaml").write_text(f"{section}:\n  {name}: 3\n")
        caplog.clear()
        given = {"overrides": [text]} if text else {"yaml_path": str(tmp_path / "c.yaml")}
        assert load(GrownConfig, **given).grown.rate == 3
        old, new = ("older", "grown") if section == "older" else ("grown.speed", "grown.rate")
        assert f"key {old} is called {new} now" in caplog.text
    assert with_values(GrownConfig(), {key: 5}).grown.rate == 5


@pytest.mark.parametrize("old", ["grown.speed", "older.speed", "older.rate"])
def test_an_old_and_a_new_name_have_one_value(tmp_path, old):
    (tmp_path / "c.yaml").write_text("grown: {rate: 2}\n")
    path = str(tmp_path / "c.yaml")
    for words in (["grown.rate=2", f"{old}=3"], [f"{old}=3", "grown={rate: 2}"]):
        with pytest.raises(ConfigError, match=r"(speed|older\.rate)=3 and grown(\.rate)?=.*2"):
            load(GrownConfig, words)
    with pytest.raises(ConfigError, match="one key with two values"):
        load(GrownConfig, [f"{old}=3"], yaml_path=path)
    for value in ("2", "null"):
        assert load(GrownConfig, [f"{old}={value}", "grown.rate=2"]).grown.rate == 2
        assert load(GrownConfig, [f"{old}={value}"], yaml_path=path).grown.rate == 2


def test_a_key_that_is_gone_is_ignored_with_a_warning(tmp_path, caplog):
    (tmp_path / "c.yaml").write_text("grown: {noise: 3, rate: 2}\n")
    cfg = load(GrownConfig, ["grown.noise=4"], yaml_path=str(tmp_path / "c.yaml"))
    assert cfg.grown == Grown(rate=2)
    line = "key grown.noise is gone, its value is ignored: set rate= instead"
    assert caplog.text.count(line) == 1
    with pytest.raises(ConfigError, match=r"unknown key 'grown\.noisy'"):
        load(GrownConfig, ["grown.noisy=4"])


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


@pytest.mark.parametrize(
    ("schema", "words", "advice"),
    [
        (TrainConfig, ["autoencoder.level_weight=1"], "it changes no optimum"),
        (PrepareConfig, ["target_share=0.3"], "a fifth of a held-out user's items"),
        (EvaluateConfig, ["block_users=9", "in_process_cells=0"], "the size of the log decides"),
        (BacktestConfig, ["block_users=9"], "the size of the catalogue decides"),
        (IndexConfig, ["allow_miss=true", "sample=9"], "target_recall=null keeps an index"),
        (PipelineConfig, ["evaluate.launch.workers=0"], "launch= of raysys backtest"),
    ],
)
def test_keys_of_before_change_nothing_and_say_so(schema, words, advice, caplog):
    assert load(schema, words) == schema()
    assert caplog.text.count("is gone, its value is ignored") == len(words)
    assert advice in caplog.text
