"""What a run leaves: its figures as JSON, and in docs/benchmarks.md."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["Table", "as_json", "is_on_page", "replaced", "tables_of"]

#: Rows by the names of their columns, which may come twice.
Table = list[dict[str, Any]]

#: A block of the page that a run writes anew.
_BLOCK = "<!-- python -m benchmarks {name} -->\n{text}\n<!-- end of {name} -->"


def as_json(machine: str, results: Mapping[str, tuple[str, float]]) -> str:
    """The figures of a run: of each benchmark its tables, and the seconds that it took."""
    found = {
        name: {"tables": _tables(text), "seconds": round(seconds, 1)}
        for name, (text, seconds) in results.items()
    }
    return json.dumps({"machine": machine, "benchmarks": found}, indent=1) + "\n"


def _tables(text: str) -> list[Table]:
    """Tables of Markdown."""
    tables: list[Table] = []
    head: list[str] | None = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            head = None
        elif head is None:
            head = [f"{name} ({n})" if name in cells[:n] else name for n, name in enumerate(cells)]
            tables.append([])
        elif set(line) - set("|-: "):
            tables[-1].append(dict(zip(head, map(_number, cells), strict=True)))
    return tables


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def is_on_page(page: Path, name: str) -> bool:
    """Whether the page has a place for a benchmark."""
    return f"<!-- end of {name} -->" in page.read_text(encoding="utf-8")


def replaced(page: Path, name: str, machine: str, text: str) -> str:
    """The text of the page with what a benchmark has printed now, where its place is."""
    new = _BLOCK.format(name=name, text=f"{machine}:\n\n{text}\n")
    return _block(name).sub(lambda _: new, page.read_text(encoding="utf-8"))


def tables_of(page: Path, name: str) -> list[Table]:
    """What the page says of a benchmark that has a place there."""
    found = _block(name).search(page.read_text(encoding="utf-8"))
    return _tables(found[0] if found else "")


def _block(name: str) -> re.Pattern[str]:
    pattern = re.escape(_BLOCK).replace(re.escape("{name}"), re.escape(name))
    return re.compile(pattern.replace(re.escape("{text}"), ".*?"), re.DOTALL)
