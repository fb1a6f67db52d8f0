"""The scripts that run in Redis, by their names in ``lua/``."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple

__all__ = ["Script", "script"]


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


def _read(name: str) -> str:
    """Its text, with those that it includes in place of saying so."""
    text = files("celery_graceful").joinpath(f"store/lua/{name}.lua").read_text(encoding="utf-8")
    return re.sub(r"^-- include (\w+)$", lambda found: _read(found[1]), text, flags=re.MULTILINE)
