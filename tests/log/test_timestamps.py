import datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import DataError
from raysys.log.timestamps import FORMS, LATEST, advice, guess_forms, to_seconds

SECONDS = 1_505_315_100  # 2017-09-13 15:05:00 UTC, a Wednesday
MOMENT = datetime.datetime.fromtimestamp(SECONDS, datetime.UTC)
US = "%m/%d/%Y %I:%M:%S %p"


@pytest.mark.parametrize(
    ("column", "units"),
    [
        (pa.array([SECONDS]), {"s": 1}),
        (pa.array([SECONDS * 10**3 + 7]), {"ms": 1}),
        (pa.array([SECONDS * 10**6 + 7]), {"us": 1}),
        (pa.array([SECONDS * 10**9 + 7]), {"ns": 1}),
        (pa.array([SECONDS + 0.25]), {"s": 1}),
        (pa.array([str(SECONDS * 1000)]), {"ms": 1}),
        (pa.array([MOMENT], pa.timestamp("ms", "UTC")), {"iso": 1}),
        (pa.array([MOMENT.replace(tzinfo=None)], pa.timestamp("ns")), {"iso": 1}),
        (pa.array([b"2017-09-13 15:05:00 UTC"]), {"iso": 1}),
        (pa.array(["2017-09-13 15:05:00 UTC"]).dictionary_encode(), {"iso": 1}),
        (pa.array(["2017-09-13 15:05:00 UTC"], pa.large_string()), {"iso": 1}),
    ],
)
def test_columns_of_every_type(column, units):
    seconds, bad, found = to_seconds(column)
    assert seconds.to_pylist() == [SECONDS]
    assert not bad.any()
    assert found == units


FORMS_READ = [
    "2017-09-13 15:05:00",
    "2017-09-13T15:05:00",
    "2017-09-13 15:05",
    "2017-09-13 15:05:00 UTC",
    "2017-09-13 15:05:00 GMT",
    "2017-09-13 15:05:00UTC",
    "2017-09-13T15:05:00Z",
    "2017-09-13 15:05:00 Z",
    "2017-09-13T15:05Z",
    "2017-09-13 15:05:00+0000",
    "2017-09-13 15:05:00 +0000",
    "2017-09-13 15:05:00 +00:00",
    "2017-09-13 15:05:00+00",
    "2017-09-13 17:05:00 +0200",
    "2017-09-13 07:05:00-08:00",
    "2017-09-13 15:05:00.25",
    "2017-09-13 15:05:00.123456789 UTC",
    "2017-09-13 15:05:00,123",
    "2017/09/13 15:05:00",
    "2017/9/13 15:05",
    "2017/09/13 15:05:00 UTC",
    "  2017-09-13 15:05:00 UTC ",
    "20170913T150500Z",
    "Wed, 13 Sep 2017 15:05:00 GMT",
    "Wed, 13 Sep 2017 17:05:00 +0200",
    "13 Sep 2017 15:05:00 UTC",
    "Wed Sep 13 15:05:00 +0000 2017",
    "Wed Sep 13 15:05:00 UTC 2017",
    "Wed Sep 13 15:05:00 2017",
    "13/Sep/2017:15:05:00 +0000",
]
NO_TIMES = [
    *("yesterday", "9/13/2017 3:05:00 PM", "13.09.2017 15:05", "13/09/2017"),
    *("2017-09-13 15:05:00 EST", "Wed, 13 Sep 2017 15:05:00 PST", "2017-02-31 00:00:00 UTC"),
    *("2017-13-01", "2017-09-13 25:00:00", "-1", "nan", "1901-01-01", "2101-01-01 UTC"),
]


@pytest.mark.parametrize("text", FORMS_READ)
def test_forms_that_name_their_order_are_read_alone_and_among_others(text):
    for others in ([], ["2017-09-13 15:05:00", None], ["junk", "2018/1/2 UTC"], FORMS_READ):
        seconds, bad, units = to_seconds(pa.array([text, *others]))
        assert seconds[0].as_py() == SECONDS
        assert not bad[0]
        assert units["iso"] == seconds.is_valid().sum().as_py()


@pytest.mark.parametrize("text", NO_TIMES)
def test_what_may_mean_several_times_or_none_is_a_bad_row(text):
    for others in ([], ["2017-09-13 15:05:00 UTC"], FORMS_READ):
        seconds, bad, _ = to_seconds(pa.array([text, *others]))
        assert (seconds[0].as_py(), bool(bad[0])) == (None, True)
        assert seconds.to_pylist()[1:] == [SECONDS] * len(others)


@pytest.mark.parametrize(
    ("text", "day"),
    [("2017-09-13", 13), ("2017/9/3", 3), ("2017/09/13", 13), ("2017-09-13 UTC", 13)],
)
def test_dates_alone_are_midnights(text, day):
    seconds, _, _ = to_seconds(pa.array([text]))
    assert seconds.to_pylist() == [SECONDS - 15 * 3600 - 300 + (day - 13) * 86_400]


def test_bad_and_missing_times_among_good_ones():
    column = pa.array([MOMENT.isoformat(), "yesterday", None, "-1", "12"])
    seconds, bad, units = to_seconds(column)
    assert seconds.to_pylist() == [SECONDS, None, None, None, 12]
    assert bad.tolist() == [False, True, False, True, False]
    assert units == {"s": 2, "iso": 1}


SPELLINGS = [
    lambda t: f"{t:%Y-%m-%d %H:%M:%S} UTC",
    lambda t: f"{t:%Y-%m-%d %H:%M:%S.%f} GMT",
    lambda t: f"{t:%Y-%m-%dT%H:%M:%S}Z",
    lambda t: f"{t:%Y/%m/%d %H:%M:%S}",
    lambda t: f"{t.year}/{t.month}/{t.day} {t.hour}:{t:%M:%S}",
    lambda t: f"{t:%a, %d %b %Y %H:%M:%S} GMT",
    lambda t: f"{t:%a %b %d %H:%M:%S} +0000 {t.year}",
    lambda t: f"{t + datetime.timedelta(hours=5, minutes=30):%Y-%m-%d %H:%M:%S} +05:30",
    lambda t: f"{t - datetime.timedelta(hours=3):%Y-%m-%dT%H:%M:%S}-0300",
    lambda t: str(int(t.timestamp())),
    lambda t: str(int(t.timestamp() * 1000)),
]
MOMENTS = st.integers(200_000_000, LATEST).map(  # 1976 on: fewer milliseconds are seconds
    lambda s: datetime.datetime.fromtimestamp(s, datetime.UTC)
)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(MOMENTS, st.sampled_from(SPELLINGS)), min_size=1, max_size=8))
def test_one_moment_in_any_form_is_one_second(rows):
    seconds, bad, _ = to_seconds(pa.array([spell(time) for time, spell in rows]))
    assert seconds.to_pylist() == [int(time.timestamp()) for time, _ in rows]
    assert not bad.any()


@pytest.mark.parametrize(
    ("column", "form"),
    [
        (pa.array(["9/13/2017 3:05:00 PM", "09/13/2017 03:05:00 pm"]), US),
        (pa.array(["13.09.2017 15:05"]), "%d.%m.%Y %H:%M"),
        (pa.array(["13-Sep-17 15:05:00"]), "%d-%b-%y %H:%M:%S"),
        (pa.array([201709131505]), "%Y%m%d%H%M"),
        (pa.array(["13/09/2017 17:05 +0200"]), "%d/%m/%Y %H:%M %z"),
        (pa.array(["13/09/2017 15:05 UTC"]), "%d/%m/%Y %H:%M %Z"),
        (pa.array([MOMENT], pa.timestamp("us", "UTC")), US),  # typed: the form is not needed
    ],
)
def test_a_form_that_is_named(column, form):
    seconds, bad, _ = to_seconds(column, form=form)
    assert set(seconds.to_pylist()) == {SECONDS}
    assert not bad.any()


def test_rows_that_do_not_match_a_named_form_are_bad():
    column = pa.array(["9/13/2017 3:05:00 PM", "2017-09-13 15:05:00", None, "13/9/2017 3:05:00 PM"])
    seconds, bad, units = to_seconds(column, form=US)
    assert seconds.to_pylist() == [SECONDS, None, None, None]
    assert bad.tolist() == [False, True, False, True]
    assert units == {"format": 1}
    _, bad, _ = to_seconds(pa.array(["13/09/2017 15:05 CST"]), form="%d/%m/%Y %H:%M %Z")
    assert bad.tolist() == [True]


@pytest.mark.parametrize(
    ("examples", "forms"),
    [
        (["9/13/2017 3:05:00 PM", "9/3/2017 11:05:00 AM"], [US]),
        (["9/3/2017 3:05:00 PM"], [US, US.replace("%m/%d", "%d/%m")]),
        (["13/09/2017"], ["%d/%m/%Y"]),
        (["13.09.2017 15:05", "01.02.2017 05:06"], ["%d.%m.%Y %H:%M"]),
        (["09 13, 2017", "01 2, 2017"], ["%m %d, %Y"]),
        (["Sep 13, 2017"], ["%b %d, %Y"]),
        (["13-Sep-2017 15:05:00"], ["%d-%b-%Y %H:%M:%S"]),
        (["20170913150500"], ["%Y%m%d%H%M%S"]),
        (["yesterday"], []),
        ([], []),
    ],
)
def test_forms_are_guessed_from_examples(examples, forms):
    assert guess_forms(examples) == forms
    for form in forms[:1]:
        _, bad, _ = to_seconds(pa.array(examples), form=form)
        assert not bad.any()


def test_the_advice_names_what_is_read_and_the_setting():
    assert advice(["13/9/2017"]) == f'{FORMS}, here format.time="%d/%m/%Y"'
    both = advice(["1/2/2017"]).removeprefix(FORMS)
    assert both == ', here format.time="%m/%d/%Y" or format.time="%d/%m/%Y"'
    assert advice(["junk"]).startswith(f"{FORMS}, for example format.time=")


@pytest.mark.parametrize("column", [pa.array([True]), pa.array([[1]]), pa.array([b"\xff"])])
def test_columns_that_hold_no_times(column):
    with pytest.raises(DataError, match="timestamp column of"):
        to_seconds(column)


def test_a_column_of_nulls_has_no_times():
    seconds, bad, units = to_seconds(pa.nulls(3))
    assert seconds.to_pylist() == [None] * 3
    assert (bad.tolist(), units) == ([False] * 3, {})
    assert np.asarray(to_seconds(pa.array([None, None], pa.string()))[1]).tolist() == [False, False]
