"""Each link of a page leads somewhere, on GitHub and in what Sphinx builds."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.pages import DOCS, PAGES, ROOT, anchors, prose

ANCHORS = {page: anchors(page) for page in PAGES}


def links(page: Path) -> list[str]:
    text = re.sub(r"`[^`]*`", "code", prose(page))
    return re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme in ("http", "https"), link
            assert parts.netloc, link
            continue
        target = (page.parent / parts.path).resolve() if parts.path else page
        assert target.exists(), f"{link}: no such file"
        if parts.fragment:
            assert parts.fragment in ANCHORS[target], f"{link}: no such heading"


def test_files_that_are_shown_are_there_and_linked_to() -> None:
    """On GitHub, which includes no files, a link leads there."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        shown = re.findall(r"^ *```\{literalinclude\} (\S+)$", text, re.M)
        linked = {*links(page)}
        for name in shown:
            assert (page.parent / name).is_file(), f"{page.name}: {name}"
            assert name in linked, f"{page.name}: no link to {name}"


def test_every_page_is_in_the_index() -> None:
    listed = re.findall(r"^([\w/-]+)$", (DOCS / "index.md").read_text(encoding="utf-8"), re.M)
    there = [str(page.relative_to(DOCS).with_suffix("")) for page in PAGES if DOCS in page.parents]
    assert sorted([*listed, "index"]) == sorted(there)
