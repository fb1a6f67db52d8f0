"""Work in portions: by bytes, and by count."""

from __future__ import annotations

import pytest

from celery_graceful.system.portions import BYTES, COUNT, portions

MORE = BYTES // 2 + 1


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([1, 1, 1], [3]),
        ([0] * (2 * COUNT + 1), [COUNT, COUNT, 1]),
        ([MORE, MORE, 1], [1, 2]),
        ([10 * BYTES, 1, 10 * BYTES], [1, 1, 1]),
        ([BYTES, 1], [1, 1]),
    ],
)
def test_portions(sizes: list[int], expected: list[int]) -> None:
    found = [list(portion) for portion in portions(sizes, int)]
    assert [len(portion) for portion in found] == expected
    assert [size for portion in found for size in portion] == sizes
