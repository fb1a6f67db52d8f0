"""Where a task stands: the innermost frames, and nothing of its values."""

from __future__ import annotations

import sys

from celery_graceful.runs import frames
from celery_graceful.runs.stacks import FRAMES, LETTERS, stack_of


def deep(depth: int, secret: str) -> str:
    return deep(depth - 1, secret) if depth else stack_of(sys._getframe())


def test_it_is_bounded_and_has_no_values() -> None:
    for depth in (1, 200):
        said = deep(depth, "secret" + "x")
        lines = said.splitlines()
        assert len(lines) <= FRAMES
        assert len(said) <= LETTERS
        assert lines[-1].endswith("in deep")
        assert "secretx" not in said
    assert stack_of(None) == ""


def test_the_innermost_place_that_is_a_users() -> None:
    ours = f'  File "{frames.__file__}", line 3, in point'
    stack = f"""  File "/srv/shop.py", line 24, in report
  File "/srv/a folder/rows.py", line 7, in next_one
{ours}
  File "<string>", line 4, in __init__"""
    assert frames.point_in(stack) == "rows.py:7 (next_one)"
    assert frames.point_in(ours) == frames.point_in("") == ""
