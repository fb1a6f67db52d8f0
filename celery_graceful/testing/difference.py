"""In what two worlds differ, in lines for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from typing import Any

__all__ = ["difference"]

#: Entries, and characters of one, that are shown.
MOST, WIDEST = 8, 120


def difference(expected: Any, found: Any) -> list[str]:
    """What is in one and not in the other.

    Args:
        expected: The effects of a task that nobody disturbed.
        found: Those of one that was interrupted.
    """
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        lines = [f"missing: {_short(k)}: {_short(expected[k])}" for k in expected if k not in found]
        lines += [f"too much: {_short(k)}: {_short(found[k])}" for k in found if k not in expected]
        for key in expected:
            if key in found and expected[key] != found[key]:
                inner = difference(expected[key], found[key])
                lines += [f"at {_short(key)}: {line}" for line in inner]
    elif isinstance(expected, (list, tuple, Set)) and isinstance(found, (list, tuple, Set)):
        lines = _counted(expected, found)
        if not lines:
            lines = [f"another order: {_short(found)}", f"     expected: {_short(expected)}"]
    else:
        lines = [f"expected {_short(expected)}", f"found    {_short(found)}"]
    more = len(lines) - MOST
    return [*lines[:MOST], *([f"and {more} more"] if more > 0 else [])]


def _counted(expected: Iterable[Any], found: Iterable[Any]) -> list[str]:
    before, after = Counter(map(_short, expected)), Counter(map(_short, found))
    lines = []
    for entry in dict.fromkeys([*before, *after]):
        least, most = before[entry], after[entry]
        if most < least:
            times = "" if least == 1 else f" ({most} times instead of {least})"
            lines.append(f"missing: {entry}{times}")
        elif most > least:
            lines.append(
                f"too much: {entry}" if not least else f"{most} times instead of {least}: {entry}"
            )
    return lines


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= WIDEST else text[: WIDEST - 3] + "..."
