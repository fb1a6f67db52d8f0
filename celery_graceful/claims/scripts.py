"""Scripts of ``store/lua/`` that a channel runs over kombu's connections."""

from __future__ import annotations

import hashlib
from importlib.resources import files

__all__ = ["CLAIM", "PUT", "Script"]


class Script:
    """One of them."""

    def __init__(self, name: str) -> None:
        path = files("celery_graceful").joinpath(f"store/lua/{name}.lua")
        self.text = path.read_text(encoding="utf-8")
        self.sha = hashlib.sha1(self.text.encode()).hexdigest()


CLAIM, PUT = Script("claim"), Script("put")
