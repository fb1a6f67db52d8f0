"""A page asks no other host for anything: it reads from a disk as it does on the web.

What a browser loads by itself is looked for when the pages have been written: scripts, styles,
fonts, pictures. Links that a reader may follow go where they like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

#: What loads: tags of HTML (no ``link`` that only says how pages belong together).
LOADS = {
    ".html": [
        r"<(?:script|img|iframe|source|object|embed|input)\b[^>]*?"
        r"\b(?:src|data)\s*=\s*[\"']?(?:https?:)?//([^\"'>\s]+)",
        r"<link\b(?=[^>]*\brel\s*=\s*[\"'][^\"']*(?:stylesheet|icon|preload|preconnect|prefetch))"
        r"[^>]*?\bhref\s*=\s*[\"']?(?:https?:)?//([^\"'>\s]+)",
    ],
    ".js": [],
    ".css": [],
}
#: In all of them: a page has scripts and styles inside.
ANYWHERE = [
    r"(?<!@)\b(?:import|importScripts|fetch)\b[^;\n]{0,80}?[\"'](?:https?:)?//([^\"'\s]+)",
    r"(?:url\(\s*[\"']?|@import\s+[\"'])(?:https?:)?//([^\"')\s]+)",
]


def foreign(text: str, suffix: str) -> Iterator[str]:
    """What is loaded from elsewhere by a file of this kind."""
    for pattern in [*LOADS[suffix], *ANYWHERE]:
        yield from re.findall(pattern, text, re.I)


def check(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    for path in sorted(Path(app.outdir).rglob("*")):
        if path.suffix in LOADS:
            for what in foreign(path.read_text(encoding="utf-8"), path.suffix):
                where = path.relative_to(app.outdir)
                logger.warning("%s loads from another host: %s", where, what)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
