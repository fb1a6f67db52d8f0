"""What scripts are told of ends: the same, in whichever of their forms they are kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_graceful.batches.end_texts import end_texts, first_text
from celery_graceful.batches.marks import BATCH, CALLBACK
from celery_graceful.batches.member_part import CallbackEnd, end_of_success, fields_of, part_of
from celery_graceful.batches.model import Outcome

names = st.text(st.sampled_from('ab/"\\,\n\x00é\udcff'), min_size=1, max_size=4)
marks = st.builds("{}/{}".format, st.sampled_from(["b", "b2", "c", 'd"', ""]), names)
ends = st.lists(st.tuples(marks, st.sampled_from(["w", "v"]), st.integers(0, 99)), min_size=1)


@given(ends)
def test_a_mark_says_the_same_as_its_fields(given: list[tuple[str, str, int]]) -> None:
    told, workers, numbers = zip(*given, strict=True)
    marked, marked_many = first_text(told, workers, numbers)
    spelled, many = first_text([fields_of(mark) for mark in told], workers, numbers)
    assert marked_many == many == len(told)
    assert json.loads(marked) == json.loads(spelled)


def test_members_that_have_ended_in_all_ways_go_together() -> None:
    failed = ("b", "2", Outcome.FAILED._value_, None)
    text, many = first_text(["b/1", failed, "b/3", CallbackEnd("b", "x")], ["w"] * 4, [1, 2, 3, 4])
    assert many == 3
    assert json.loads(text) == [
        ["b", "succeeded", "w", ["1", "3"], ["1", "3"]],
        ["b", "failed", "w", ["2"], ["2"]],
    ]
    (text,) = end_texts(["b/1", failed], [None, None])
    assert json.loads(text) == [
        ["b", "succeeded", "", ["1"], [""]],
        ["b", "failed", "", ["2"], [""]],
    ]


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, None),
        ({BATCH: "b/me"}, "b/me"),
        ({BATCH: "b/x/me"}, None),
        ({BATCH: "b/last"}, None),
        ({BATCH: "me"}, None),
        ({BATCH: 3}, None),
        ({CALLBACK: "no mark"}, None),
    ],
)
def test_what_a_success_is_to_a_batch(headers: dict[str, Any], told: str | None) -> None:
    """Nothing, of what is not the last one of its member, or has a mark that says nothing."""
    assert end_of_success(headers, "me") == told
    part = part_of(headers)
    assert (part is not None and part.last == "me") == (told is not None)
