"""What a test needs that may not be there: it is skipped at home, and fails in CI."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest

__all__ = ["require_modules", "require_program"]


def _report(missing: list[str]) -> None:
    if missing:
        report = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        report(f"not installed: {', '.join(missing)}")


def require_modules(*names: str) -> None:
    """Python modules, of the extra ``test``."""
    _report([name for name in names if importlib.util.find_spec(name) is None])


def require_program(name: str) -> None:
    """A program in ``PATH``."""
    _report([] if shutil.which(name) else [name])
