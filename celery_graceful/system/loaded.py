"""What a process has imported, asked without importing it."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["is_instance", "loaded"]


def loaded(module: str, name: str) -> Any:
    """``module.name``, or ``None`` where this process has not imported it.

    A module that another thread is importing is in ``sys.modules`` and has only a part of its
    names. What is not there yet nobody can have an instance of.
    """
    return getattr(sys.modules.get(module), name, None)


def is_instance(value: Any, module: str, name: str) -> bool:
    """Whether it is one of the class ``module.name``, which is not imported for that."""
    return isinstance(value, loaded(module, name) or ())
