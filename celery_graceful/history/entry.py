"""One moment of a task's life that is not as usual."""

from __future__ import annotations

import enum
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from celery_graceful.system.known_fields import known_fields

__all__ = ["CUT_OFF", "FLEET", "Entry", "What", "entries_of", "key_of"]

#: The stream of all tasks, and of deploys.
FLEET = "graceful:history"

#: Why something was rescued from a worker that had been told to stop.
CUT_OFF = "it was stopping, and did not get to give that back"

#: The most that is kept of a text: a reason may be anything that was raised.
LONGEST = 300

#: Tasks that are named at once; the others are counted.
NAMED = 100


class What(str, enum.Enum):
    """What has happened."""

    INTERRUPTED = "interrupted"
    GIVEN_UP = "given_up"
    RELEASED = "released"
    RESUMED = "resumed"
    FENCED = "fenced"
    DIED = "died"
    RESCUED = "rescued"
    QUARANTINED = "quarantined"
    MISSING = "missing"
    RESENT = "resent"
    DEPLOY = "deploy"

    def __str__(self) -> str:
        return self.value


def key_of(task_id: str) -> str:
    """The list of one task."""
    return f"{FLEET}:{task_id}"


@dataclass(frozen=True)
class Entry:
    """A moment, as it is kept. Never an argument of a task.

    Attributes:
        kind: What has happened.
        id: Of the task; empty for a deploy, and where only a number is known.
        task: Its name, where it is known.
        worker: Where it happened: the name of its node.
        reason: Why.
        where: At which point the task stood.
        count: Of how many tasks it tells, where it names none.
        at: When; seconds since the epoch.
        process: Which one died: several tasks may tell of one.
    """

    kind: What
    id: str = ""
    task: str = ""
    worker: str = ""
    reason: str = ""
    where: str = ""
    count: int = 1
    at: float = field(default_factory=time.time)
    process: str = ""

    def to_json(self) -> str:
        """As it is kept: without what says nothing."""
        said = {name: value for name, value in asdict(self).items() if value not in ("", 1)}
        for name in ("reason", "where"):
            if name in said:
                said[name] = said[name][:LONGEST]
        said.update(kind=str(self.kind), at=round(self.at, 3))
        return json.dumps(said, separators=(",", ":"), default=str)

    @classmethod
    def from_json(cls, text: str) -> Entry | None:
        """What was kept; ``None`` of a kind that a later version has written."""
        said = json.loads(text)
        try:
            kind = What(said["kind"])
        except ValueError:
            return None
        return cls(**{**known_fields(cls, said), "kind": kind})


def entries_of(
    kind: What,
    tasks: Sequence[tuple[str, str]],
    *,
    worker: str = "",
    reason: str,
    where: str = "",
    at: float | None = None,
) -> list[Entry]:
    """The same moment of several tasks, each with its id and its name (empty if not known)."""
    at = time.time() if at is None else at
    entries = [Entry(kind, *task, worker, reason, where, at=at) for task in tasks[:NAMED]]
    more = len(tasks) - NAMED
    if more > 0:
        entries.append(Entry(kind, worker=worker, reason=reason, count=more, at=at))
    return entries
