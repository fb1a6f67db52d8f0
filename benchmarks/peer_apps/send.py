"""Send tasks in turn: ``python -m benchmarks.peer_apps.send APP FIRST COUNT SECONDS``."""

from __future__ import annotations

import importlib
import sys
import time

__all__ = ["main"]


def main() -> None:
    """Print the seconds that it took; the first one connects, and is not counted."""
    name, first, count, seconds = sys.argv[1:]
    app = importlib.import_module(f"benchmarks.peer_apps.{name}")
    numbers = range(int(first), int(first) + int(count))
    took = app.send_all(numbers, float(seconds), time.monotonic)
    print(took)


if __name__ == "__main__":
    main()
