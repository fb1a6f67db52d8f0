"""Who searches for what a log says finds it: the page has it word for word."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.support.pages import DOCS, ROOT, prose

QUOTED = re.findall(r"\*\*([^*]+)\*\*", prose(DOCS / "troubleshooting.md"))


@cache
def said() -> str:
    """All that the package may say, numbers and what is filled in left out."""
    texts = (
        node.value if isinstance(node, ast.Constant) else node.name
        for path in (ROOT / "celery_graceful").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    )
    return re.sub(r"%[-.\d]*[a-z]|\d+", "#", "\n".join(texts))


def test_the_page_quotes() -> None:
    assert len(QUOTED) > 10


@pytest.mark.parametrize("quoted", QUOTED)
def test_what_logs_say_is_said(quoted: str) -> None:
    if quoted in ("NotRegistered",):  # Celery's
        return
    for part in re.split(r"\.\.\.|\d+|`[^`]*`|: ", quoted):
        if len(part.strip()) > 2:
            assert part.strip() in said(), part
