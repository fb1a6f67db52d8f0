"""Fixtures for pytest, which loads this in each of its runs: so it stands outside of the package.

The package is imported by whoever asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

__all__ = ["assert_survives_interruptions", "graceful_run"]


@pytest.fixture(name="graceful_run")
def graceful_run() -> Callable[..., Any]:
    """``celery_graceful.testing.graceful_run``."""
    from celery_graceful.testing import graceful_run

    return graceful_run


@pytest.fixture(name="assert_survives_interruptions")
def assert_survives_interruptions() -> Callable[..., None]:
    """``celery_graceful.testing.assert_survives_interruptions``."""
    from celery_graceful.testing import assert_survives_interruptions

    return assert_survives_interruptions
