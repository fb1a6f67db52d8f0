"""How results are stored: by Celery's backends, with fewer questions.

Come in by `one_trip.RedisBackend`.
"""

from __future__ import annotations

__all__ = ["one_trip"]
