"""What is asked of Redis, as it counts itself."""

from __future__ import annotations

from typing import Any

__all__ = ["Commands"]

#: What the benchmarks themselves ask, and no worker does.
_OURS = ("info", "config|resetstat", "copy", "llen", "hlen", "keys", "ping")


class Commands:
    """Counts the commands from its making on; those inside scripts as well.

    Args:
        client: Of the server.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        client.config_resetstat()

    def count(self) -> int:
        """Commands so far, without those of the benchmark."""
        stats: dict[str, dict[str, int]] = self._client.info("commandstats")
        names = ((name.removeprefix("cmdstat_"), stat["calls"]) for name, stat in stats.items())
        return sum(calls for name, calls in names if name not in _OURS)
