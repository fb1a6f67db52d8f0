"""What of its claims a worker has begun to run: noted beside them, for who counts its deaths.

A claim says that the worker holds a message, not that its task runs: how many run at once, and in
which order, depends on the pool, on rate limits and on much else. So what has begun is noted:
gathered, and sent by the thread that sends acknowledgements. What has ended by then is never sent.

What kills its process at once would not be noted in time. So whoever runs it notes the first task
of its process, and each that was delivered before, and waits for that. Key:

``graceful:begun:<worker>``
    Set: numbers of the worker's claims that have begun. Those of claims that are gone say nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from celery_graceful.claims.claimant import WORKERS, begun_key, claims_key
from celery_graceful.claims.fence import CLAIM
from celery_graceful.store.app_stores import find_workers_store
from celery_graceful.store.store import Store, StoreAway, StoreRefused
from celery_graceful.timeline import worker_state

__all__ = ["Begun", "note_now"]

#: Seconds after which what still runs is noted.
SHORT = 0.01


class Begun:
    """What has begun on one server, under all identities of a worker.

    Claims are told apart by their tags, ``<worker>/<number>``. To be called from any thread,
    except ``send``, for which there is one.

    Args:
        store: Where the claims are.
        rouse: Sees to it that ``send`` is called soon.
    """

    def __init__(self, store: Store, rouse: Callable[[], None]) -> None:
        self.store = store
        self._rouse = rouse
        self._running: set[str] = set()
        #: What is to be noted: since when it runs, or ``None`` if it was put down again.
        self._news: dict[str, float | None] = {}

    @property
    def has_news(self) -> bool:
        """Whether something is still to be noted."""
        return bool(self._news)

    def add(self, tag: str) -> None:
        """It begins."""
        self._running.add(tag)
        self._news[tag] = time.monotonic()
        self._rouse()

    def discard(self, tag: str) -> None:
        """It runs no more, and is a claim no more, or will not be for long."""
        self._running.discard(tag)
        self._news.pop(tag, None)

    def put_down(self, tag: str) -> None:
        """It has not ended, runs no more, and stays claimed."""
        self._running.discard(tag)
        self._news[tag] = None
        self._rouse()

    def again(self, worker: str) -> None:
        """What was noted of that identity is lost."""
        for tag in list(self._running):
            if tag.startswith(f"{worker}/"):
                self._news[tag] = 0.0
        if self._news:
            self._rouse()

    def send(self, *, at_once: bool = False) -> None:
        """Note what is not short, or all that there is to note.

        Raises:
            StoreAway: Redis did not answer; to be done again.
        """
        until = time.monotonic() - (0.0 if at_once else SHORT)
        due = [(tag, at) for tag, at in list(self._news.items()) if at is None or at <= until]
        by_worker: dict[str, list[tuple[str, float | None]]] = {}
        for tag, at in due:
            by_worker.setdefault(tag.rpartition("/")[0], []).append((tag, at))
        for worker, news in by_worker.items():
            begun = [_number(tag) for tag, at in news if at is not None]
            put_down = [_number(tag) for tag, at in news if at is None]
            try:
                _note(self.store, worker, begun, put_down)
            except StoreRefused:
                pass  # said there; if it dies, it is not counted
            for tag, at in news:
                if self._news.get(tag, at) == at:
                    self._news.pop(tag, None)


def _number(tag: str) -> str:
    return tag.rpartition("/")[2]


def _note(store: Store, worker: str, begun: Sequence[str], put_down: Sequence[str] = ()) -> None:
    keys = [WORKERS, claims_key(worker), begun_key(worker)]
    store.run("begun", keys, [worker, len(begun), *begun, *put_down])


def note_now(app: Any, request: dict[str, Any], *, first: bool, in_child: bool = False) -> None:
    """A task is about to run in this process: note it, and wait for that, if it may be poison.

    For at most the time-out of the store, and never in the way of the task.

    Args:
        app: The Celery app.
        request: What the task's request is made of.
        first: It is the first one of this process.
        in_child: Of a pool, where nobody else asks the store now: no connection is left.
    """
    if not first and not (request.get("delivery_info") or {}).get("redelivered"):
        return
    worker, _, number = request.get(CLAIM, "").rpartition("/")
    task = app.tasks.get(request.get("task"))
    if not number or not getattr(task, "acks_late", True):  # nobody else will run it
        return
    board = worker_state.board.value
    store = find_workers_store(app, None if board is None else board.place_of(worker))
    if store is not None:
        before = store.connections
        try:
            _note(store, worker, [number])
        except StoreAway:
            pass  # said there; if this run dies, it is not counted
        if in_child and store.connections != before:
            store.disconnect()
