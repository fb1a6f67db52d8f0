"""What a worker answers those who ask whether it lives, and whether it takes tasks.

Come in by `thread.Probes`, and `health.Health`, which it asks. Nothing of it is there unless
somebody wants it. Whether somebody may listen says `endpoint.Endpoint`.
"""

from __future__ import annotations

__all__ = ["endpoint", "health", "thread"]
