"""Where a task stands: the innermost frames, and nothing of its values."""

from __future__ import annotations

import sys

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
