"""What of the moments that the history knows is counted, and under which labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from celery_graceful.history.entry import Entry, What
from celery_graceful.metrics.counts import Counts
from celery_graceful.phases import InterruptReason

__all__ = ["MomentCounter"]

#: Stands for what is not known here: a message may say any name of a task.
OTHER = "other"

#: Reasons in a word. Those of interrupts are one already.
_REASONS = {
    **{str(reason): str(reason) for reason in InterruptReason},
    "quiet": "quiet",
    "hard deadline": "hard_deadline",
    "another worker runs it": "duplicate",
    "its process ended with the worker": "process_ended",
}

#: Those that are told apart by their tasks.
_BY_TASK = {
    What.GIVEN_UP: "given_up",
    What.FENCED: "fenced",
    What.DIED: "deaths",
    What.QUARANTINED: "quarantined",
}

#: And those by nothing.
_PLAIN = {
    What.RESCUED: "rescued",
    What.MISSING: "batch_members_found_missing",
    What.RESENT: "batch_members_resent",
}


class MomentCounter:
    """Counts moments of one worker; called as what it is.

    Args:
        counts: Where.
        pool: The kind of the worker's pool.
        knows: Whether there is a task of that name.
    """

    def __init__(self, counts: Counts, pool: str, knows: Callable[[str], bool]) -> None:
        self._counts, self._pool_kind, self._knows = counts, pool, knows

    def __call__(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            key = self._key(entry)
            if key is not None:
                self._counts.add(*key, number=entry.count)

    def _key(self, entry: Entry) -> tuple[str, ...] | None:
        kind, reason = entry.kind, _REASONS.get(entry.reason, OTHER)
        task = entry.task if entry.task and self._knows(entry.task) else OTHER
        if kind is What.INTERRUPTED:
            return "interruptions", reason, task, self._pool_kind
        if kind is What.RELEASED:
            return "released", reason
        if kind in _BY_TASK:
            return _BY_TASK[kind], task
        # Who resumes counts it by itself; and a deploy is nobody's.
        return (_PLAIN[kind],) if kind in _PLAIN else None
