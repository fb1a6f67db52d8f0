"""Commands that are pasted."""

from __future__ import annotations

import pytest

from celery_graceful.operations.pasting import pasted


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("id", "quarantine show id"),
        ("May 5", "quarantine show 'May 5'"),
        ("-x", "quarantine show -- -x"),
        ("--all", "quarantine show -- --all"),
    ],
)
def test_a_name_is_no_option(name: str, said: str) -> None:
    assert pasted(["quarantine", "show"], name) == said
