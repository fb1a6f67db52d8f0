"""What is noted of a run when it starts, for brokers without claims: ``<worker>|<delivery>``.

With a mark at its end where the message is acknowledged then: such a broker never gives it back.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["StartNote", "note_of"]

_EARLY = "!"


class StartNote(NamedTuple):
    """Of a run that has not ended, as far as is known.

    Attributes:
        worker: Who runs it.
        may_come_back: Its message was not acknowledged when it started.
    """

    worker: str
    may_come_back: bool

    @classmethod
    def parse(cls, text: str | None) -> StartNote | None:
        """What was noted; ``None`` if nothing runs."""
        if not text or text.startswith("="):
            return None
        return cls(text.partition("|")[0], not text.endswith(_EARLY))


def note_of(worker: str, delivery: str, *, acks_late: bool) -> str:
    """The note of a run.

    Args:
        worker: Id of the worker.
        delivery: Of the message.
        acks_late: Its message is acknowledged when it has ended.
    """
    return f"{worker}|{delivery}{'' if acks_late else _EARLY}"
