"""The last line of a drain."""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import Any
from unittest.mock import Mock

import pytest

from celery_graceful.worker.report import report


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (3.92, r"took 2\.\d s, 3\.9 s of grace left"),
        (0.02, r"took 2\.\d s, 0\.0 s of grace left"),
        (-0.001, r"took 2\.\d s, 0\.0 s of grace left"),
        (-1.2, r"took 2\.\d s, 1\.2 s more than the grace"),
    ],
)
def test_the_grace_that_is_left(
    left: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("celery_graceful.worker.report.time", Mock(monotonic=lambda: now))
    board: Any = Mock(requested_at=now - 2, grace_ends_at=now + left)
    line = report(Mock(counts=Counter()), board)
    assert re.search(expected + "$", line), line
