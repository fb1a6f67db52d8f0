"""What a later version has written, read by this one: what it knows of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

__all__ = ["known_fields"]


def known_fields(cls: Any, said: Mapping[str, Any]) -> dict[str, Any]:
    """Those that a dataclass has, of what was said of one.

    Args:
        cls: The dataclass.
        said: By their names; workers of several versions share what they keep.
    """
    known = {each.name for each in fields(cls)}
    return {name: value for name, value in said.items() if name in known}
