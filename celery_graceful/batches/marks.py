"""What a message says of its batch: headers, on all of the tasks that a member is made of.

``graceful_batch``: ``<batch>/<member>``
    The member is the id of the task whose success ends it: of a chain or chord that of its last
    task, whichever of its tasks carries the header.
``graceful_batch_callback``: ``<batch>/<name>``
    A callback of the batch, which is no member. It ends with the success of the task whose id is
    ``callback_id``, or the failure of any.
``graceful_last``
    The id of that task, where it is another one: of what Celery made, not this package.
``graceful_copy``
    A nonce, where several copies of a callback may be on their way: the first that starts runs. It
    begins with ``EACH`` where that goes for each task by itself: all have one id in all copies.
``graceful_chord``
    Id of a chord whose body begins with several tasks: it ends when they are sent.

They go over a retry (``messages/context.py``) and along a chain, but not to what a task is
replaced by.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import wraps
from typing import Any, NamedTuple
from uuid import NAMESPACE_URL, uuid5

from celery import Signature, chord, group
from celery.canvas import _chain, maybe_signature
from celery.exceptions import Ignore

from celery_graceful.batches.skipped_or_replaced import Replaced
from celery_graceful.messages.own_headers import BATCH, CALLBACK, CHORD, COPY, LAST

__all__ = [
    "BATCH",
    "CALLBACK",
    "CHORD",
    "COPY",
    "EACH",
    "LAST",
    "OURS",
    "Mark",
    "all_of",
    "callback_id",
    "callback_of",
    "first_headers",
    "first_of",
    "hand_on",
    "mark",
    "marks_of",
    "member_of",
    "parts_of",
    "read_mark",
]

#: How a nonce begins.
EACH = "each:"

#: What is carried on to whatever goes on in the place of a task.
OURS = (BATCH, CALLBACK, LAST, COPY)


class Mark(NamedTuple):
    """What a header says: of which batch, and of what in it.

    Attributes:
        batch: Its id.
        name: Id of the member, or name of the callback.
    """

    batch: str
    name: str

    def __str__(self) -> str:
        return f"{self.batch}/{self.name}"


def member_of(headers: Mapping[str, Any] | None) -> Mark | None:
    """Which member a message, or a request, is part of."""
    return _mark_in(headers, BATCH)


def callback_of(headers: Mapping[str, Any] | None) -> Mark | None:
    """Which callback a message, or a request, is part of."""
    return _mark_in(headers, CALLBACK)


def _mark_in(headers: Mapping[str, Any] | None, header: str) -> Mark | None:
    read = read_mark(headers.get(header)) if headers else None
    return None if read is None else Mark(*read)


def marks_of(request: Any) -> dict[str, Any]:
    """Those of a task that runs, by its context; in ``headers`` of one that is applied eagerly."""
    said = {**(request.headers or {}), **vars(request)}
    return {name: said[name] for name in OURS if name in said}


def read_mark(value: Any) -> tuple[str, str] | None:
    """What a mark says, by the value of its header: batch, and member or callback."""
    if not isinstance(value, str):
        return None
    batch, found, name = value.partition("/")
    return (batch, name) if found else None


def callback_id(batch: str, name: str) -> str:
    """Id of the task whose success ends a callback: the same whoever asks."""
    return str(uuid5(NAMESPACE_URL, f"graceful:{batch}/{name}"))


def mark(sig: Any, headers: Mapping[str, Any], but: Collection[str] = ()) -> None:
    """Put headers on all tasks of a signature; not on what is linked to them.

    Args:
        sig: The signature; it is changed, and so are those that it is made of.
        headers: Added to those that they have.
        but: Ids of tasks that are left as they are.
    """
    inner = parts_of(sig)
    options = sig.options
    if inner is None and options.get("task_id") in but:
        return
    # Those of a chain or a chord would take the place of those of its tasks.
    if inner is None or "headers" in options:
        options["headers"] = {**(options.get("headers") or {}), **headers}
    for part in inner or ():
        mark(part, headers, but)


def first_headers(sig: Any) -> Mapping[str, Any]:
    """The headers of the first task of a signature, or of what stands for one in a message."""
    while sig and sig.get("subtask_type"):
        parts = parts_of(maybe_signature(sig))
        sig = parts[0] if parts else None
    return ((sig or {}).get("options") or {}).get("headers") or {}


def parts_of(sig: Any) -> list[Any] | None:
    """The signatures that one is made of; ``None`` for that of a single task."""
    if isinstance(sig, chord):
        header = sig.tasks
        if isinstance(header, group):
            return [header, sig.body] if sig.body is not None else [header]
        sig.kwargs["header"] = _signatures(header)
        return [*sig.tasks, sig.body] if sig.body is not None else [*sig.tasks]
    if isinstance(sig, (_chain, group)):
        sig.kwargs["tasks"] = _signatures(sig.tasks)
        return [*sig.tasks]
    return None


def first_of(sig: Any) -> Any:
    """What a signature begins with: that of a task, or a group or chord of several."""
    first = sig
    while isinstance(first, _chain) and (parts := parts_of(first)):
        first = parts[0]
    return first


def all_of(sig: Any) -> Iterator[Any]:
    """A signature, and all that it is made of."""
    yield sig
    for part in parts_of(sig) or ():
        yield from all_of(part)


def _signatures(tasks: Any) -> list[Any]:
    return [one if isinstance(one, Signature) else maybe_signature(one) for one in tasks]


def hand_on(task: Any) -> None:
    """What replaces ``task`` while it runs is what it was: doing so twice is the same as once."""
    on_replace: Callable[[Any], Any] = task.on_replace
    if hasattr(on_replace, "_hands_on"):
        return

    @wraps(on_replace)
    def replaced(sig: Any) -> Any:
        ours = marks_of(task.request)
        if not ours:
            return on_replace(sig)
        # What follows in the chain is in ``sig`` by now, and has marks of its own, or none: of the
        # body of a chord only the first task is the callback.
        follow = [one for each in task.request.chain or () for one in all_of(maybe_signature(each))]
        mark(sig, ours, but={one.options["task_id"] for one in follow if "task_id" in one.options})
        try:
            return on_replace(sig)
        except Ignore as exc:  # it is sent
            raise Replaced(*exc.args) from None

    replaced._hands_on = True  # type: ignore[attr-defined]
    task.on_replace = replaced
