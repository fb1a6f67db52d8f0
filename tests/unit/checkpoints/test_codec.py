"""What is saved comes back as it was, or is refused by name."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
import uuid
import zoneinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_graceful import CheckpointError
from celery_graceful.checkpoints.codec import decode, encode

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.none() | st.just(dt.timezone.utc))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.just("$"), inner)
        | st.dictionaries(st.integers() | st.tuples(st.text(), st.dates()), inner)
    ),
    max_leaves=20,
)


def same(one, other):
    """Equal, and of the same types all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one), list(other)) and same(list(one.values()), list(other.values()))
    return one == other and getattr(one, "fold", 0) == getattr(other, "fold", 0)


@given(VALUES)
def test_round_trip(value):
    assert same(decode(encode(value, "state")), value)


def test_a_zone_becomes_its_offset():
    moment = dt.datetime(2024, 7, 1, 12, tzinfo=zoneinfo.ZoneInfo("Europe/Vienna"))
    back = decode(encode(moment, "state"))
    assert back == moment
    assert back.utcoffset() == dt.timedelta(hours=2)


@pytest.mark.parametrize(
    "value", [dt.datetime(2026, 10, 25, 2, 30, fold=1), dt.time(2, 30, fold=1)]
)
def test_the_second_of_an_hour_that_comes_twice(value):
    assert decode(encode([value], "state"))[0].fold == 1


def test_values_of_earlier_versions():
    assert decode('{"$":["datetime","2026-10-25T02:30:00"]}') == dt.datetime(2026, 10, 25, 2, 30)
    assert decode('{"$":["time","10:00:00"]}') == dt.time(10)


class Colour(str, enum.Enum):
    RED = "red"


class Row:
    pk = 3


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"rows": [1, 2, 3, {4}]}, r"^state\['rows'\]\[3\] is a builtins\.set.*sorted"),
        ({"a": Row()}, r"^state\['a'\] is a .*Row.*save its \.pk"),
        ((1, Colour.RED), r"^state\[1\] is a .*Colour.*save its \.value"),
        ([Point(1, 2)], r"^state\[0\] is a .*Point.*convert it to tuple"),
        (collections.OrderedDict(a=1), r"^state is a collections\.OrderedDict.*convert it to dict"),
        (iter([1]), r"^state is a .*pass list"),
        (
            [dt.time(10, tzinfo=zoneinfo.ZoneInfo("Europe/Vienna"))],
            r"^state\[0\] is a datetime\.time.*save it without Europe/Vienna, and that name",
        ),
        ({(1, object()): 1}, r"^a key of state\[1\] is a builtins\.object"),
    ],
)
def test_refused(value, message):
    with pytest.raises(CheckpointError, match=message):
        encode(value, "state")


def test_too_large():
    with pytest.raises(CheckpointError, match=r"state takes 1002 bytes.*max_bytes = 1000.*ref"):
        encode("x" * 1000, "state", 1000)
    assert encode("x" * 998, "state", 1000)


def test_contains_itself():
    value = []
    value.append(value)
    with pytest.raises(CheckpointError, match="state cannot be saved: it contains itself"):
        encode(value, "state")


def test_cursor_types():
    for cursor in (decimal.Decimal("1.50"), uuid.uuid4(), dt.date(2024, 1, 1), b"\0", (1, "a")):
        assert same(decode(encode(cursor, "cursor")), cursor)
