"""What became of every task: where it was started, interrupted and finished."""

from __future__ import annotations

from dataclasses import dataclass, field

from celery_graceful.demo.journal import Fact

__all__ = ["History", "TaskHistory", "Turn"]


@dataclass
class Turn:
    """One start of a task on one worker.

    Attributes:
        worker: Where.
        resumed: At which place it went on; empty if it began at the beginning.
        ended_at: When, on the monotonic clock; ``None`` while it runs.
        end: ``finished``, ``interrupted``, ``failed`` or ``killed``.
        how: More about its end.
    """

    worker: str
    resumed: str = ""
    ended_at: float | None = None
    end: str = ""
    how: str = ""


@dataclass
class TaskHistory:
    """One task that was sent."""

    id: str
    received_by: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    @property
    def finished(self) -> list[Turn]:
        """The turns that came to the task's own end."""
        return [turn for turn in self.turns if turn.end == "finished"]

    @property
    def cut_short(self) -> list[Turn]:
        """The turns that ended before the task did."""
        return [turn for turn in self.turns if turn.end not in ("", "finished")]

    @property
    def given_back_by(self) -> list[str]:
        """Workers that fetched its message and gave it back unstarted."""
        started_on = {turn.worker for turn in self.turns}
        return [name for name in dict.fromkeys(self.received_by) if name not in started_on]


class History:
    """All tasks, in the order in which they were sent."""

    def __init__(self) -> None:
        self.tasks: dict[str, TaskHistory] = {}

    def sent(self, task_id: str) -> None:
        """A task was sent."""
        self.tasks[task_id] = TaskHistory(task_id)

    def add(self, fact: Fact) -> None:
        """Take in what a worker told."""
        task = self.tasks[fact.task]
        if fact.what == "received":
            task.received_by.append(fact.worker)
        elif fact.what == "started":
            task.turns.append(Turn(fact.worker))
        elif fact.what == "resumed":
            task.turns[-1].resumed = fact.detail
        elif fact.what in ("finished", "interrupted", "failed"):
            self._end(task, fact.worker, fact.at, fact.what, fact.detail)

    def killed(self, worker: str, at: float) -> None:
        """A worker was killed, with all that ran on it."""
        for task in self.tasks.values():
            self._end(task, worker, at, "killed", "killed with its worker")

    @staticmethod
    def _end(task: TaskHistory, worker: str, at: float, end: str, how: str) -> None:
        for turn in task.turns:
            if turn.worker == worker and turn.ended_at is None:
                turn.ended_at, turn.end, turn.how = at, end, how
                return

    def running(self, name: str) -> bool:
        """Whether a task of that name has been started."""
        return any(t.turns for t in self.tasks.values() if t.id.startswith(name))

    def all_finished(self) -> bool:
        """Whether every task has come to its end."""
        return all(task.finished for task in self.tasks.values())
