"""The scripts that run in Redis, by their names in ``lua/``."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

__all__ = ["Script", "read_all", "script"]


class Script(NamedTuple):
    """One of them, and what Redis knows it by."""

    sha: str
    text: str


@cache
def script(name: str) -> Script:
    """A script of ``lua/``.

    Args:
        name: Without ``.lua``.
    """
    import hashlib  # brings OpenSSL along

    text = _read(name)
    return Script(hashlib.sha1(text.encode()).hexdigest(), text)


def read_all() -> None:
    """Need none of their files from now on.

    A deploy may replace or remove what a worker was started from while its tasks still run.
    """
    for file in _folder().iterdir():
        _text(file.name.removesuffix(".lua"))


def _read(name: str) -> str:
    """Its text, with those that it includes in place of saying so."""
    text = _text(name)
    return re.sub(r"^-- include (\w+)$", lambda found: _read(found[1]), text, flags=re.MULTILINE)


@cache
def _text(name: str) -> str:
    text: str = _folder().joinpath(f"{name}.lua").read_text(encoding="utf-8")
    return text


def _folder() -> Any:
    return files("celery_graceful").joinpath("store/lua")
