"""How Sphinx builds these pages: ``make docs``."""

from __future__ import annotations

import sys
from pathlib import Path

import celery_graceful

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "celery_graceful"
author = "celery_graceful contributors"
version = release = celery_graceful.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "pictures",
    "offline",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"celery_graceful {release}"
html_copy_source = False
html_show_copyright = False  # the license says whose it is
html_static_path = ["_static"]
html_css_files = ["pages.css"]

# The pages are read on GitHub too: its anchors, and its fence for pictures.
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

autodoc_member_order = "bysource"
autodoc_mock_imports = ["hypothesis"]  # who uses it has it
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_default_options = {"show-inheritance": True}
# `make links`: what a page links to on the reader's own machine is not there.
linkcheck_ignore = [r"https?://(localhost|127\.0\.0\.1)"]
linkcheck_timeout = 20

napoleon_numpy_docstring = False
napoleon_use_ivar = True
