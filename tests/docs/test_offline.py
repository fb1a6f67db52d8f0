"""What the build refuses: a page that asks another host for something."""

from __future__ import annotations

import importlib.util

import pytest

from tests.support.pages import DOCS

pytest.importorskip("sphinx", reason="the docs are built by `make docs`, which installs it")

LOADED = [
    ('<script type="module">import m from "https://a.example/m.mjs";</script>', ".html"),
    ('<script async src="//a.example/m.js"></script>', ".html"),
    ('<link rel="stylesheet" type="text/css" href="https://a.example/x.css" />', ".html"),
    ('<link href="https://a.example/x.woff2" rel="preload" as="font">', ".html"),
    ('<img alt="" src="http://a.example/x.svg">', ".html"),
    ("<style>@font-face { src: url(https://a.example/x.woff2) }</style>", ".html"),
    ('@import "https://a.example/x.css";', ".css"),
    ('const m = await import("https://a.example/m.mjs")', ".js"),
]
NOT_LOADED = [
    ('<a href="https://docs.celeryq.dev/">Celery</a>', ".html"),
    ('<link rel="canonical" href="https://a.example/" />', ".html"),
    ('<svg xmlns="http://www.w3.org/2000/svg"><use href="#x"/></svg>', ".html"),
    ('<script src="_static/doctools.js"></script><img src="_images/x.svg">', ".html"),
    ("<p>import of what? see https://a.example/</p>", ".html"),
    ("/* https://a.example/ */ a { background: url(file.png) }", ".css"),
]


@pytest.fixture(scope="module")
def offline():
    path = DOCS / "_extensions" / "offline.py"
    spec = importlib.util.spec_from_file_location("offline", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("text", "suffix"), LOADED)
def test_what_is_loaded_from_elsewhere_is_found(offline, text: str, suffix: str) -> None:
    assert [what.partition("/")[0] for what in offline.foreign(text, suffix)] == ["a.example"]


@pytest.mark.parametrize(("text", "suffix"), NOT_LOADED)
def test_links_are_none_of_that(offline, text: str, suffix: str) -> None:
    assert [*offline.foreign(text, suffix)] == []
