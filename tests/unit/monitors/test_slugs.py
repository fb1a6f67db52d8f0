"""What monitors are called at their servers, and which entries share a name there: none."""

from __future__ import annotations

import itertools
import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_graceful import Monitor
from celery_graceful.monitors.entry_slugs import Entries
from celery_graceful.monitors.slug import slug_of_entry, slugify
from tests.support.logs import own_records


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Nightly export", "nightly-export"),
        ("shop.tasks.export", "shoptasksexport"),
        ("  Überfällige -- Rechnungen ", "uberfallige-rechnungen"),
        ("a" * 60, "a" * 50),
        ("snake_case", "snake_case"),
    ],
)
def test_slugs_are_the_servers(name: str, slug: str) -> None:
    assert slugify(name) == slug
    assert Monitor(name).slug == slug


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Nightly export", "nightly-export"),
        ("every_hour", "every_hour"),
        ("Überfällige", "uberfallige"),
        ("shop.tasks.export", r"shoptasksexport-[0-9a-f]{8}"),
        ("a" * 60, r"a{41}-[0-9a-f]{8}"),
        ("日报", r"entry-[0-9a-f]{8}"),
        ("", r"entry-[0-9a-f]{8}"),
        ("\ud800", r"entry-[0-9a-f]{8}"),
    ],
)
def test_of_an_entry(name: str, slug: str) -> None:
    assert re.fullmatch(slug, slug_of_entry(name))


NAMES = st.lists(st.text(st.sampled_from("aAä.-_ 日!"), max_size=6), unique=True, max_size=12)


@given(NAMES)
def test_each_entry_has_one_of_its_own(names: list[str]) -> None:
    entries = Entries()
    entries.know(names[::2])
    slugs = [entries.slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    for slug in slugs:
        assert Monitor(slug).slug == slug, "a server would write it otherwise"


@given(NAMES)
def test_the_order_of_what_is_known_at_start_says_nothing(names: list[str]) -> None:
    one, other = Entries(), Entries()
    one.know(names)
    other.know(reversed(names))
    assert [one.slug(name) for name in names] == [other.slug(name) for name in names]


def test_what_a_task_reports_to_is_not_an_entrys(caplog: pytest.LogCaptureFixture) -> None:
    entries = Entries()
    entries.take("nightly", "task shop.export")
    with caplog.at_level(logging.WARNING):
        slugs = [entries.slug("nightly") for _ in range(3)]
        assert not own_records(caplog)  # said where it is used
        for slug in (*slugs, "another"):
            entries.say(slug)
        entries.say()
    assert len(set(slugs)) == 1
    assert re.fullmatch(r"nightly-[0-9a-f]{8}", slugs[0])
    assert len(own_records(caplog)) == 1
    assert "task shop.export" in caplog.text


def test_no_two_of_many() -> None:
    names = ["".join(some) for some in itertools.product("ab.", repeat=8)]
    assert len({slug_of_entry(name) for name in names}) == len(names)
