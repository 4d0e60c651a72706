import pytest

from raysys.errors import ConfigError
from raysys.sweeps.space import Space, flatten, typed

DEFAULTS = {"loss": "cosine", "dropout": 0.5, "layers": [1], "lr": 0.01, "epochs": 3}
WHEN = {"values": [0.1, 0.2], "if": {"loss": ["likelihood"]}}


def space(**domains):
    return Space.of(domains, DEFAULTS.__getitem__)


def text(key, raw):
    return str(raw)


def test_a_space_may_be_nested_and_its_domains_may_depend_on_others():
    found = flatten({"a": {"b": [1], "c": {"low": 1, "high": 2}}, "d.e": WHEN})
    assert found == {"a.b": [1], "a.c": {"low": 1, "high": 2}, "d.e": WHEN}


@pytest.mark.parametrize(
    "domain",
    [3, "x", {"low": 1}, {"values": [1], "low": 1, "high": 2}, {"values": [1], "log": True}],
)
def test_what_is_no_domain_is_named(domain):
    with pytest.raises(ConfigError, match=r"space\.k.*expected a list, \{low, high"):
        flatten({"k": domain})


def test_conditions_are_read_as_the_keys_that_they_name():
    assert typed("a", {"values": [1], "if": {"b": 2}}, text) == {
        "values": ["1"],
        "if": {"b": ["2"]},
    }
    with pytest.raises(ConfigError, match=r"space\.a\.values=\[\]"):
        typed("a", {"values": []}, text)
    with pytest.raises(ConfigError, match="low > 0 with log"):
        typed("a", {"low": 0, "high": 1, "log": True}, lambda _, raw: raw)


def test_a_grid_has_every_setting_once_where_a_key_counts_only_beside_another():
    found = space(dropout=WHEN, loss=["cosine", "likelihood"], layers=[[1], [2, 3]])
    settings = list(found.grid())
    assert len(settings) == len({str(setting) for setting in settings}) == 2 + 2 * 2 - 1
    assert {"loss": "cosine", "layers": [1]} not in settings  # the defaults are trial 0
    assert {"loss": "cosine", "layers": [2, 3]} in settings
    assert all(("dropout" in s) == (s["loss"] == "likelihood") for s in settings)


def test_a_condition_on_a_key_that_is_not_sought_counts_by_its_default():
    assert list(space(dropout=WHEN).grid()) == []
    assert len(list(space(dropout=WHEN | {"if": {"loss": ["cosine"]}}).grid())) == 2


def test_conditions_in_a_circle_are_refused():
    with pytest.raises(ConfigError, match=r"lr, epochs go in a circle"):
        space(lr=[1], epochs=[2], loss=["cosine"]) and space(
            lr={"values": [1], "if": {"epochs": [2]}}, epochs={"values": [2], "if": {"lr": [1]}}
        )


def test_the_defaults_are_a_point_of_the_space_where_they_lie_in_it():
    assert space(lr={"low": 0.001, "high": 0.1, "log": True}).default_values() == {"lr": 0.01}
    assert space(lr=[0.1, 0.2]).default_values() is None
    assert space(lr=[0.01], dropout=WHEN).default_values() == {"lr": 0.01}


class Draws:
    """Draws the last choice, the highest number."""

    def __init__(self):
        self.asked = []

    def suggest_categorical(self, name, choices):
        self.asked.append((name, choices))
        return choices[-1]

    def suggest_float(self, name, low, high, *, log):
        self.asked.append((name, log))
        return high

    def suggest_int(self, name, low, high, *, log):
        return high


def test_values_are_drawn_where_they_count_and_lists_stand_as_text():
    draws, seen = Draws(), []
    found = space(
        dropout=WHEN,
        loss=["cosine", "likelihood"],
        layers=[[1], [2, 3]],
        lr={"low": 0.1, "high": 0.2, "log": True},
        epochs={"low": 1, "high": 4, "log": False},
    )
    values = found.suggest(draws, seen.append)
    assert values == {
        "loss": "likelihood", "layers": [2, 3], "lr": 0.2, "epochs": 4, "dropout": 0.2,
    }  # fmt: skip
    assert seen == ["loss", "layers", "lr", "epochs", "dropout"]
    assert ("layers", ["[1]", "[2, 3]"]) in draws.asked
    assert found.encoded(values)["layers"] == "[2, 3]"
