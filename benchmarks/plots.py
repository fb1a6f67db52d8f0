"""Pictures of what docs/benchmarks.md says in tables; drawn from them, so that they cannot differ.

matplotlib comes with the extra ``bench``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.page import Table, tables_of

__all__ = ["PLOTS", "draw", "fingerprint", "path_of"]

_GREEN, _GREY, _RED = "#2a9d5c", "#9aa0a6", "#d1603d"

#: From light to dark.
_SHADES = ("#b7e0c8", "#6cbf8f", "#2a9d5c")

#: Of ours in stacks, and of the others' there.
_STACK = ("#5b8db8", "#8fb3d1", "#c3d5e4", _GREEN, "#d9d9d9")

#: Inches.
_WIDTH = 8.0

#: So that the same figures make the same file.
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "celery_graceful", "font.size": 9}


def _peers(figure: Any, table: Table) -> None:
    """Consuming, beside plain Celery and other queues."""
    setups = ("1 x 10", "2 x 1")
    for axes, setup in zip(figure.subplots(1, 2), setups, strict=True):
        rows = [row for row in table if str(row["at once, queue"]).startswith(setup)][::-1]
        names = [str(row["at once, queue"]).removeprefix(f"{setup}, ") for row in rows]
        rates = [float(row["tasks/s"]) for row in rows]
        loses = [not str(row["not back"]).startswith("0 ") for row in rows]
        colours = [
            _GREEN if "graceful" in name else _RED if lost else _GREY
            for name, lost in zip(names, loses, strict=True)
        ]
        bars = axes.barh(names, rates, color=colours)
        axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=3)
        axes.set_xlim(0, max(rates) * 1.25)
        axes.set_title(f"{setup}: empty tasks a second")
        axes.tick_params(axis="x", labelbottom=False, length=0)
    figure.supxlabel("red: not all were back 90 s after kill -9", color=_RED, fontsize=9)


def _latency(figure: Any, table: Table) -> None:
    """From SIGTERM to the task that sees it."""
    name = "pool, and how the task looks"
    pools = list(dict.fromkeys(str(row[name]).partition(", ")[0] for row in table))
    ways = list(dict.fromkeys(str(row[name]).partition(", ")[2] for row in table))
    axes = figure.subplots()
    found = {str(row[name]): row for row in table}
    width = 0.8 / len(ways)
    for number, way in enumerate(ways):
        colour = _GREY if "plain" in way else _SHADES[number % len(_SHADES)]
        for at, pool in enumerate(pools):
            row, x = found[f"{pool}, {way}"], at + (number - (len(ways) - 1) / 2) * width
            if isinstance(row["p50 ms"], str):
                axes.text(
                    x, 0.1, str(row["p50 ms"]), rotation=90, ha="center", va="bottom", color=_RED
                )
                continue
            label = way if at == len(pools) - 1 else None
            axes.bar(x, row["p50 ms"], width * 0.9, color=colour, label=label)
            axes.plot([x, x], [row["p50 ms"], row["p99 ms"]], color="black", linewidth=1)
    axes.set_xticks(range(len(pools)), pools)
    axes.set_ylabel("ms: p50, and up to p99")
    axes.legend(frameon=False)
    axes.set_title("From SIGTERM to the first line of the task that sees it")


def _rescue(figure: Any, table: Table) -> None:
    """From ``kill -9`` to the task that runs elsewhere."""
    axes = figure.subplots()
    names = [str(row["settings"]) for row in table][::-1]
    for at, row in enumerate(table[::-1]):
        axes.plot([row["min s"], row["max s"]], [at, at], color=_GREEN, linewidth=6, alpha=0.4)
        axes.plot([row["median s"]], [at], "o", color=_GREEN)
        axes.text(float(row["max s"]) + 0.2, at, f"{row['median s']:.1f} s", va="center")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(0, max(float(row["max s"]) for row in table) * 1.15)
    axes.set_title("From kill -9 to the task running elsewhere: least, median, most, s")


def _layers(figure: Any, table: Table) -> None:
    """Whose code an empty task is paid for."""
    axes = figure.subplots()
    whose = [name for name in table[0] if name not in ("us a task", "all")]
    names = [str(row["us a task"]) for row in table][::-1]
    left = [0.0] * len(names)
    for name, colour in zip(whose, _STACK, strict=True):
        parts = [float(row[name]) for row in table][::-1]
        axes.barh(names, parts, left=left, color=colour, label=name)
        left = [sum(pair) for pair in zip(left, parts, strict=True)]
    for at, row in enumerate(table[::-1]):
        axes.text(left[at] + 5, at, f"{row['all']:.0f}", va="center")
    axes.set_xlim(0, max(left) * 1.1)
    axes.legend(frameon=False, ncols=len(whose), loc="upper center", bbox_to_anchor=(0.4, -0.12))
    axes.set_title("Processor time of an empty task on threads, us, by whose code runs")


#: By the benchmark whose first table it shows: how it is drawn, and inches of its height.
PLOTS: Mapping[str, tuple[Callable[[Any, Table], None], float]] = MappingProxyType(
    {"peers": (_peers, 3.2), "latency": (_latency, 3.2), "rescue": (_rescue, 1.6)}
    | {"shares": (_layers, 2.2)}
)


def path_of(page: Path, name: str) -> Path:
    """Where the picture of a benchmark is."""
    return page.parent / "_static" / f"benchmark-{name}.svg"


def fingerprint(table: Sequence[Mapping[str, Any]]) -> str:
    """Of the figures that a picture was drawn from; it says so in its description."""
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()[:16]


def draw(page: Path, name: str) -> None:
    """Draw the picture of a benchmark, from what the page says.

    Raises:
        ImportError: matplotlib is missing.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    table = tables_of(page, name)[0]
    paint, height = PLOTS[name]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        paint(figure, table)
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
        about = {"Date": None, "Description": fingerprint(table)}
        figure.savefig(path_of(page, name), metadata=about)
