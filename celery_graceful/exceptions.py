"""Exceptions of celery_graceful.

::

    BaseException
    ├── Interrupted                      a task stands at a safe point and must stop
    └── Exception
        ├── celery.exceptions.Ignore
        │   └── TaskInterrupted          an interruption on its way to the main process
        ├── celery.exceptions.SoftTimeLimitExceeded
        │   └── ShutdownTimeLimit        the soft deadline of a stopping worker has passed
        ├── celery.exceptions.CeleryError
        │   ├── BatchFinished            nothing can be added to a batch any more
        │   └── UnknownBatch             there is no such batch, or not any more
        ├── celery.exceptions.TaskError
        │   ├── CheckpointError          what a task wants to save, or go on from, is unfit for it
        │   ├── PoisonedTask             its process died too often, the task is in quarantine
        │   └── TooManyInterruptions     ``max_interruptions`` was passed, the task has failed
        └── celery.exceptions.ImproperlyConfigured
            └── SettingsError            a ``graceful_*`` setting cannot be used

``Interrupted`` stands apart on purpose: an interruption is not an error, and a bare
``except Exception`` in a task must not swallow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery.exceptions import (
    CeleryError,
    Ignore,
    ImproperlyConfigured,
    SoftTimeLimitExceeded,
    TaskError,
)

from celery_graceful.phases import Interrupt

__all__ = [
    "BatchFinished",
    "CheckpointError",
    "Interrupted",
    "PoisonedTask",
    "SettingsError",
    "ShutdownTimeLimit",
    "TaskInterrupted",
    "TooManyInterruptions",
    "UnknownBatch",
]


class Interrupted(BaseException):
    """Raised in a task at a point that it named safe, when it has to stop.

    Uncaught, the task goes back to the head of its queue: not failed, not retried. In a task that
    was revoked while it ran it is raised anywhere outside of a shield; uncaught, the task ends.

    Args:
        why: The interrupt; made by hand, a message for people, or nothing.

    Attributes:
        interrupt: Why, and how much time is left. ``None`` only when the exception was
            made by hand.
        message: What it was made with by hand.
    """

    def __init__(self, why: Interrupt | str | None = None) -> None:
        super().__init__(why)
        self.interrupt = why if isinstance(why, Interrupt) else None
        self.message = "" if why is None or self.interrupt is not None else str(why)

    def __str__(self) -> str:
        return "interrupted" if self.args[0] is None else f"interrupted: {self.args[0]}"


class ShutdownTimeLimit(SoftTimeLimitExceeded):
    """Raised in a running task when the worker's soft deadline has passed.

    It is a ``SoftTimeLimitExceeded``, so that handlers written for soft time limits work
    unchanged. Uncaught in a ``GracefulTask`` it is an interruption.
    """

    def __str__(self) -> str:
        return "ShutdownTimeLimit(the worker is stopping and its soft deadline has passed)"


class TaskInterrupted(Ignore):
    """The outcome of an interrupted task, on its way from the task to the main process.

    Raised by ``GracefulTask`` itself at the task's boundary, never by a user. Being an
    ``Ignore``, Celery and the tools built on it see neither failure nor retry.

    Attributes:
        reason: Value of the ``InterruptReason``.
        started: Whether any of the task's own code ran in this delivery.
        where: At which point it stood, as far as it has said; for the history.
    """

    def __init__(self, reason: str = "shutdown", started: bool = True, where: str = "") -> None:
        super().__init__(reason, started, where)
        self.reason = reason
        self.started = started
        self.where = where

    def __repr__(self) -> str:
        return f"TaskInterrupted({self.reason!r})"


class BatchFinished(CeleryError):
    """Nothing can be added to a batch any more: it was sent, cancelled, or has ended.

    Args:
        batch: Its id.
        state: What it is in: ``sent``, ``done`` or ``cancelled``; or ``sending``, where another
            producer, or another run of the task, goes on with it.
        why: In place of what is said of the state.
    """

    def __init__(self, batch: str, state: str, why: str = "") -> None:
        super().__init__(batch, state, why)
        self.batch = batch
        self.state = state
        self.why = why

    def __str__(self) -> str:
        if self.why:
            return f"batch {self.batch}: {self.why}"
        if self.state == "sent":
            return (
                f"batch {self.batch} has been sent, nothing can be added to it from outside: add "
                "before that, or in a member or callback of it while that runs"
            )
        if self.state == "sending":
            who = "another producer, or another run of this task"
            return f"batch {self.batch}: {who}, goes on with it, leave it to that one"
        how = "was cancelled" if self.state == "cancelled" else "has ended"
        mend = "make a new one for what is still to be done"
        return f"batch {self.batch} {how}, nothing can be added to it any more: {mend}"


class UnknownBatch(CeleryError):
    """There is no such batch: it never was, has expired, or was dropped.

    Args:
        batch: The id that was asked for.
    """

    def __init__(self, batch: str) -> None:
        super().__init__(batch)
        self.batch = batch

    def __str__(self) -> str:
        return (
            f"there is no batch {self.batch!r} in the store: it is there once it is sent, and "
            "expires (graceful_batch_ttl, graceful_batch_linger); look at the id, and at "
            "graceful_store here and where it was sent"
        )


class CheckpointError(TaskError):
    """What a task wants to save cannot be saved, or what was saved does not fit its code.

    The message names the value, its type and the mend.
    """


class PoisonedTask(TaskError):
    """The process that ran a task died each time, so the task is not run again.

    Its message is kept in quarantine: ``celery graceful quarantine list``.

    Args:
        message: For people; it comes first, as it is all that some result backends show.
        deaths: How often its process died within ``graceful_poison_window``.
    """

    def __init__(self, message: str, deaths: int) -> None:
        super().__init__(message, deaths)
        self.deaths = deaths

    def __str__(self) -> str:
        return str(self.args[0])


class TooManyInterruptions(TaskError):
    """A task was interrupted more often than its ``max_interruptions`` allow.

    Args:
        message: For people; it comes first, as it is all that some result backends show.
        interruptions: How often it was.
        limit: Its ``max_interruptions``.
    """

    def __init__(self, message: str, interruptions: int, limit: int) -> None:
        super().__init__(message, interruptions, limit)
        self.interruptions = interruptions
        self.limit = limit

    def __str__(self) -> str:
        return str(self.args[0])


class SettingsError(ImproperlyConfigured):
    """A setting of celery_graceful cannot be used.

    Args:
        name: The setting or environment variable.
        value: What was found there.
        mend: What to do about it, one sentence without a full stop.
        others: What is wrong with others that were read along with it.
    """

    def __init__(
        self, name: str, value: Any, mend: str, others: Sequence[SettingsError] = ()
    ) -> None:
        said = f"{name} = {value!r} cannot be used: {mend}."
        super().__init__(" ".join([said, *map(str, others)]))
        self.name = name
        self.value = value
        self.mend = mend
        self.others = tuple(others)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.value, self.mend, self.others)

    @classmethod
    def raise_all(cls, wrong: Sequence[SettingsError]) -> None:
        """Raise them as one, if there are any."""
        if wrong:
            first, *others = wrong
            raise cls(first.name, first.value, first.mend, others)
