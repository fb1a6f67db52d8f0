"""How results are stored: by Celery's backends, with fewer questions, or later.

Come in by `one_trip.RedisBackend`, and `outlasting` (of other backends).
"""

from __future__ import annotations

__all__ = ["one_trip", "outlasting"]
