"""What memory this process has, and the most that it has had."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["Growth"]


class Growth:
    """Of the peak, from what there was when this was made, as Linux counts it."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._before = _kilobytes("VmRSS")

    def kilobytes(self) -> int:
        """So far."""
        return _kilobytes("VmHWM") - self._before


def _kilobytes(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (found,) = re.findall(rf"^{name}:\s*(\d+) kB$", status, re.MULTILINE)
    return int(found)
