"""How producers write a text as JSON: kombu escapes letters, and others do as they like."""

from __future__ import annotations

import json

__all__ = ["AWKWARD", "forms_of"]

#: Ids that JSON escapes, or may.
AWKWARD = ("ümlaut", "\N{DUCK}", 'say "hi"', "back\\slash", '\\"', "a/b<c>", "line\nend", "ends\\")


def forms_of(text: str) -> dict[str, str]:
    """It as JSON, by how it is written."""
    units = text.encode("utf-16-be").hex(" ", 2).split()
    return {
        "kombu": json.dumps(text),
        "unescaped": json.dumps(text, ensure_ascii=False),
        "slashes": json.dumps(text).replace("/", r"\/"),
        "lower": '"' + "".join(rf"\u{unit}" for unit in units) + '"',
        "upper": '"' + "".join(rf"\u{unit.upper()}" for unit in units) + '"',
    }
