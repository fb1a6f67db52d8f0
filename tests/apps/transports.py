"""Workers over transports of other people's making."""

from __future__ import annotations

import tests.support.transports  # noqa: F401 -- its names for URLs
from tests.apps.claims import app

__all__ = ["app"]
