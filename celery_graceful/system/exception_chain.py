"""What an exception carries with it, and whether somebody is dealing with one."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from weakref import ref

__all__ = ["chain", "is_in_hand", "parts"]


def chain(exc: BaseException | None) -> Iterator[BaseException]:
    """``exc``, and all that led to it: causes, contexts, and what a group is made of."""
    seen: set[int] = set()
    left = [exc]
    while left:
        one = left.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [one.__cause__, one.__context__, *parts(one)]


def parts(exc: BaseException) -> list[BaseException]:
    """What an exception group is made of; that of Python 3.10 comes from a package."""
    found = getattr(exc, "exceptions", ())
    if not isinstance(found, (tuple, list)):
        return []
    return [one for one in found if isinstance(one, BaseException)]


def is_in_hand(raised: ref[BaseException], ident: int | None) -> bool:
    """Whether what was raised in a thread is dealt with there: in an ``except``, a ``finally``.

    Args:
        raised: What was raised.
        ident: Of the thread. ``None`` where it was raised in a greenlet, whose handlers cannot be
            looked at: there it is in hand as long as anybody keeps it.
    """
    exc = raised()
    if exc is None:
        return False
    if ident is None or _was_caught_by_coroutine(exc):  # which may wait in the middle of it
        return True
    # Python 3.12 and later give exceptions, earlier ones what ``sys.exc_info`` gives.
    handled = sys._current_exceptions().get(ident)
    return exc in chain(handled[1] if isinstance(handled, tuple) else handled)


def _was_caught_by_coroutine(exc: BaseException) -> bool:
    traceback = exc.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        # One that it just passed through, into a result of ``gather`` for instance, stands there.
        if frame.f_code.co_flags & inspect.CO_COROUTINE and frame.f_lasti != traceback.tb_lasti:
            return True
        traceback = traceback.tb_next
    return False
