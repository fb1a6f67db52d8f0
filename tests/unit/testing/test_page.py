"""docs/testing.md: its code runs, and says what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

PAGE = Path(__file__).parents[3] / "docs" / "testing.md"


def test_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    names: dict[str, Any] = {"__name__": "shop"}
    for block in blocks:
        if block.startswith("# "):  # a file: tests/integration/test_real_workers.py runs it
            continue
        exec(compile(block, str(PAGE), "exec"), names)
    tests = {name: fn for name, fn in names.items() if name.startswith("test_")}
    assert len(tests) == 4
    (said,) = re.findall(r"^```text\n(.*?)\n```", text, re.M | re.S)
    with pytest.raises(AssertionError) as failed:
        tests.pop("test_remind")()
    assert str(failed.value) == said
    for test in tests.values():
        if hasattr(test, "hypothesis"):
            test = settings(deadline=None, max_examples=10)(test)
        test()
