"""One table of rankings: names, weights, and what each needs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.errors import ConfigError
from raysys.scoring.rankings import (
    NAMES,
    RANKINGS,
    Needs,
    Ranking,
    meets,
    rankings_of,
    spellings,
    text_of_keys,
)
from tests.support.models import EVENTS, ONE, make, stars


class Values:
    """What a model says of three items."""

    consume_score = np.array([3.0, 2.0, 1.0])
    log_p_consume = np.log([0.6, 0.3, 0.1])
    log_p_like = np.log([0.2, 0.4, 0.9])
    expected_rating = np.array([2.0, 4.5, 3.0])


def test_every_name_of_the_table_is_scored_by_its_own_rule():
    exact = {name: Ranking(name).exact(Values()) for name in RANKINGS}
    assert {name: int(scores.argmax()) for name, scores in exact.items()} == {
        "consume": 0,
        "rating": 1,
        "like": 2,
        "discover": 2,
    }
    np.testing.assert_allclose(exact["discover"], Values.log_p_like - 0.5 * Values.log_p_consume)
    np.testing.assert_allclose(Ranking("discover", 0).exact(Values()), Values.log_p_like)


@pytest.mark.parametrize(
    ("text", "gamma", "ranking"),
    [
        ("like", None, Ranking("like")),
        ("like", 0.3, Ranking("like")),
        ("discover", None, Ranking("discover")),
        ("discover", 0.3, Ranking("discover", 0.3)),
        ("discover^0.7", 0.3, Ranking("discover", 0.7)),
        ("similar", 0.3, Ranking("similar")),
    ],
)
def test_texts_and_their_weights(text, gamma, ranking):
    assert Ranking.parse(text, gamma) == ranking


@given(st.floats(0, allow_infinity=False))
def test_the_text_of_a_ranking_names_it(gamma):
    ranking = Ranking("discover", gamma)
    again = Ranking.parse(str(ranking))
    assert (again.name, again.weight) == (ranking.name, ranking.weight)
    assert str(Ranking("discover", 0.5)) == str(Ranking("discover")) == "discover"
    assert str(Ranking("discover", 3)) == str(Ranking("discover", 3.0)) == "discover^3"
    assert str(Ranking("discover", 0.123456789)) == "discover^0.123456789"


def test_similar_has_no_weight_and_no_rule():
    assert (Ranking("similar").weight, str(Ranking("similar"))) == (0.0, "similar")
    with pytest.raises(ConfigError, match="ranking=similar: a model has no scores"):
        Ranking("similar").rule  # noqa: B018


@pytest.mark.parametrize(
    "text", ["best", "", "like^0.5", "discover^", "discover^x", "discover^-1", "discover^inf"]
)
def test_what_the_table_lacks_cannot_be_made(text):
    with pytest.raises(ConfigError, match="ranking="):
        Ranking.parse(text)


@pytest.mark.parametrize("gamma", [float("nan"), float("inf"), -0.1])
def test_weights_out_of_range_are_refused(gamma):
    with pytest.raises(ConfigError, match="a finite weight of 0 or more"):
        Ranking("discover", gamma)


def test_the_old_key_goes_into_the_text_with_a_warning(caplog):
    assert text_of_keys("discover", None) == "discover"
    assert caplog.text == ""
    assert text_of_keys("discover", 0.3) == "discover^0.3"
    assert text_of_keys("discover", 11) == "discover^11"
    assert "ranking=discover^0.3" in caplog.text
    for gamma in (-1, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match=r"gamma=.* is not accepted: expected a finite"):
            text_of_keys(None, gamma)


def test_a_weight_without_a_ranking_is_ignored_with_a_warning(caplog):
    assert text_of_keys(None, 0.3) is None
    assert "gamma is ignored without a ranking" in caplog.text


def test_similar_is_no_ranking_of_a_model():
    with pytest.raises(ConfigError, match=r"ranking='similar' .* one of consume, .*GAMMA$"):
        text_of_keys("similar", None)


def test_rankings_of_a_log_follow_its_levels():
    assert rankings_of(stars()) == ("consume", "rating", "like", "discover")
    assert rankings_of(EVENTS) == ("consume", "like", "discover")
    assert rankings_of(ONE) == ("consume",)
    assert [meets(ONE, needs) for needs in Needs] == [True, False, False]


def test_linear_forms_weigh_consuming_and_liking():
    model = make().eval()
    model.discover_slope.fill_(0.2)
    forms = {name: Ranking(name).linear(model) for name in RANKINGS}
    assert forms["consume"] == (1.0, 0.0)
    assert forms["rating"] == forms["like"] == (0.0, 1.0)
    assert forms["discover"] == pytest.approx((-0.5 * model.link.slope(), 0.2))


def test_messages_and_requests_name_the_whole_table():
    assert set(NAMES) == {*RANKINGS, "similar"} == {text.partition("^")[0] for text in spellings()}
    assert "discover^GAMMA" in spellings()
