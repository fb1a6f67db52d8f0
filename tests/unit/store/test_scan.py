"""Reading page by page, whatever form the answer has."""

from __future__ import annotations

import re
from typing import Any

import pytest

from celery_graceful.store.scan import glob_quoted, hash_pages, keys, pairs_of, set_members


class Pages:
    """A store that answers with these pages in turn.

    Args:
        pages: What each has.
    """

    prefix = "a[b]*:"

    def __init__(self, *pages: Any) -> None:
        self._pages = list(pages)
        self.asked: list[list[Any]] = []

    def execute(self, command: str, keys: list[str], args: list[Any], **how: Any) -> Any:
        self.asked.append([command, *keys, *args])
        page = self._pages.pop(0)
        # A cursor is an int or a str, by what redis-py makes of the answer.
        return [0 if command == "SCAN" else "0", page] if not self._pages else ["7", page]


def test_each_key_comes_once_and_without_the_prefix() -> None:
    store: Any = Pages(["a[b]*:one", "a[b]*:two"], [], ["a[b]*:one", "a[b]*:a[b]*:"])
    assert list(keys(store, "*", "list")) == ["one", "two", "a[b]*:"]
    assert [asked[1] for asked in store.asked] == ["0", "7", "7"]
    assert store.asked[0][2:] == ["MATCH", r"a\[b\]\*:*", "COUNT", 500, "TYPE", "list"]


@pytest.mark.parametrize("page", [{"a": "1", "b": "2"}, ["a", "1", "b", "2"]])
def test_a_hash_is_a_dict_or_a_list(page: Any) -> None:
    assert pairs_of(page) == {"a": "1", "b": "2"}
    store: Any = Pages(page, type(page)())
    assert list(hash_pages(store, "h", 10)) == [{"a": "1", "b": "2"}, {}]
    assert store.asked == [["HSCAN", "h", "0", "COUNT", 10], ["HSCAN", "h", "7", "COUNT", 10]]


def test_the_members_of_a_set() -> None:
    store: Any = Pages(["a"], ["b", "c"])
    assert list(set_members(store, "s", 10)) == ["a", "b", "c"]


def test_a_quoted_text_has_no_signs_of_a_glob() -> None:
    plain = re.sub(r"\\.", "", glob_quoted(r"a*b?c[d-e]^\f"))
    assert plain == "abcdef"
