"""What became of the tasks: read from the journal that they wrote, and the list of what was done.

A run that a kill ended is run again, and one whose process was killed after its end and before
its acknowledgement was out as well: that is what at least once means. All else is a fault.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

__all__ = ["Blow", "Run", "Verdict", "judge", "read"]

#: Seconds after the end of a task in which its acknowledgement may be on its way: a worker may
#: stand still for some on a busy machine.
ON_ITS_WAY = 5.0

#: The same, after the connection was lost. Celery waits 2 s, then 4 s, before it connects again,
#: and reads nothing meanwhile: what a child of prefork has done is not known to the worker.
RECONNECTED = 5.0


@dataclass
class Run:
    """One start of a task. Times are monotonic."""

    task_id: str
    worker: str
    pid: int
    start: float
    end: float | None = None


@dataclass(frozen=True)
class Blow:
    """Something that was done.

    Attributes:
        kind: What.
        start: When.
        end: When it was over; a kill came at some time in between.
        worker: Whom it struck; nobody, if it was the server.
        pid: The child, if it was not the whole worker.
    """

    kind: str
    start: float
    end: float
    worker: str = ""
    pid: int = 0

    def struck(self, run: Run, since: float, until: float) -> bool:
        """Whether it killed the process of ``run``, and may have done so in that time."""
        is_of_it = self.worker == run.worker and self.pid in (0, run.pid)
        return is_of_it and self.start <= until and self.end >= since


@dataclass
class Verdict:
    """The outcome of one run of the chaos."""

    sent: int = 0
    finished: int = 0
    quarantined: int = 0
    #: Still in a queue, or held by a worker that is gone.
    stuck: list[str] = field(default_factory=list)
    #: In no queue, in no hash, nowhere.
    lost: list[str] = field(default_factory=list)
    #: Run again after a death in the run before.
    died_in: int = 0
    #: Run again after a death between end and acknowledgement.
    died_after: int = 0
    #: Run again without a reason.
    faults: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether all promises were kept."""
        return not (self.stuck or self.lost or self.faults)


def read(journal: Path) -> dict[str, list[Run]]:
    """The runs of each task, by time."""
    runs: dict[str, Run] = {}
    for line in journal.read_text().splitlines():
        kind, task_id, run, worker, pid, at = line.split()
        if kind == "S":
            runs[run] = Run(task_id, worker, int(pid), float(at))
        else:
            runs[run].end = float(at)
    tasks: dict[str, list[Run]] = {}
    for one in sorted(runs.values(), key=lambda one: one.start):
        tasks.setdefault(one.task_id, []).append(one)
    return tasks


def judge(
    sent: Iterable[str],
    journal: Path,
    blows: list[Blow],
    quarantined: set[str],
    held: set[str],
) -> Verdict:
    """Sum up.

    Args:
        sent: Ids of all tasks.
        journal: What they wrote.
        blows: What was done.
        quarantined: Ids in quarantine.
        held: Ids of messages that still are at the broker.
    """
    verdict = Verdict()
    tasks = read(journal)
    for task_id in sent:
        runs = tasks.get(task_id, [])
        verdict.sent += 1
        if any(run.end is not None for run in runs):
            verdict.finished += 1
        elif task_id in quarantined:
            verdict.quarantined += 1
        elif task_id in held:
            verdict.stuck.append(task_id)
        else:
            verdict.lost.append(task_id)
        for run, again in pairwise(runs):
            _judge_again(verdict, run, again, blows)
    return verdict


def _judge_again(verdict: Verdict, run: Run, again: Run, blows: list[Blow]) -> None:
    if run.end is None:
        if any(blow.struck(run, run.start, again.start) for blow in blows):
            verdict.died_in += 1
            return
        why = "the run before was not killed"
    elif run.end > again.start:
        why = "beside itself"
    else:
        # An answer of the server that is away waits for it to come back.
        until = run.end + ON_ITS_WAY
        for blow in blows:
            if not blow.worker and blow.start <= until and blow.end >= run.end - ON_ITS_WAY:
                until = max(until, blow.end + RECONNECTED)
        if any(blow.struck(run, run.end, until) for blow in blows):
            verdict.died_after += 1
            return
        why = f"it had ended {again.start - run.end:.3f} s ago"
    verdict.faults.append(f"{run.task_id} ran again, {why} ({run} then {again})")
