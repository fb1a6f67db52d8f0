"""Pictures are drawn when the pages are built, so that a reader's browser asks nobody for them.

A ``mermaid`` block becomes an SVG file: Mermaid runs inside of the build (``mermaidx``). Its
``accTitle`` is what a screen reader says.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import mermaidx
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

#: Labels are text of the SVG: HTML in it is not shown by all that show pictures.
CONFIG = {"htmlLabels": False, "flowchart": {"htmlLabels": False}}


class Picture(SphinxDirective):
    has_content = True

    def run(self) -> list[nodes.Node]:
        source = "\n".join(self.content)
        title = re.search(r"^\s*accTitle:\s*(.+)$", source, re.M)
        if title is None:
            raise self.error("a picture needs a line 'accTitle: what it shows'")
        drawn = Path(self.env.doctreedir) / "pictures" / f"{_digest(source)}.svg"
        if not drawn.exists():
            drawn.parent.mkdir(parents=True, exist_ok=True)
            drawn.write_text(mermaidx.render(source, config=CONFIG).svg(), encoding="utf-8")
        # As a path from the top of the pages, which need not be above it.
        image = nodes.image(uri=f"/{os.path.relpath(drawn, self.env.srcdir)}", alt=title[1])
        return [nodes.container("", image, classes=["picture"])]


def _digest(source: str) -> str:
    return hashlib.sha256(f"{mermaidx.__version__} {CONFIG} {source}".encode()).hexdigest()[:16]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("mermaid", Picture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
