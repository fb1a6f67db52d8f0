"""The table at the end: one line for every task."""

from __future__ import annotations

from collections.abc import Sequence

from celery_graceful.demo.history import History, TaskHistory
from celery_graceful.demo.timeline import Timeline, paint

__all__ = ["write_table"]

_HEAD = ("task", "started on", "interrupted (seconds after SIGTERM)", "finished on")


def write_table(history: History, timeline: Timeline) -> None:
    """Write where each task was started, when and how it was interrupted, where it finished."""
    rows = [_row(task, timeline) for task in history.tasks.values()]
    widths = [max(len(row[i]) for row in [_HEAD, *rows]) for i in range(len(_HEAD))]
    timeline.write(paint(_line(_HEAD, widths), "bold", timeline.out))
    timeline.write(_line(["-" * width for width in widths], widths))
    for task, row in zip(history.tasks.values(), rows, strict=True):
        colour = "red" if not task.finished else "yellow" if task.cut_short else ""
        timeline.write(paint(_line(row, widths), colour, timeline.out))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "  ".join(padded).rstrip()


def _row(task: TaskHistory, timeline: Timeline) -> tuple[str, str, str, str]:
    interrupted = [
        f"{timeline.since_term(turn.ended_at or 0.0):+.2f} {turn.how}" for turn in task.cut_short
    ]
    interrupted += [f"not started on {name}, which gave it back" for name in task.given_back_by]
    interrupted += [f"went on {turn.resumed}" for turn in task.turns if turn.resumed]
    return (
        task.id,
        ", ".join(turn.worker for turn in task.turns) or "-",
        "; ".join(interrupted) or "-",
        ", ".join(turn.worker for turn in task.finished) or "LOST",
    )
