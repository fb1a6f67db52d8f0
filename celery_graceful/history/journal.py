"""The journal: entries are gathered, and written to Redis by a thread that holds up nobody.

Keys, after the prefix of the store, each forgotten ``graceful_history_ttl`` after its last entry:

``graceful:history``
    Stream of the fleet, of about ``graceful_history_length`` entries; the field ``m`` is JSON.
``graceful:history:<task id>``
    List of one task, of up to 100 of the same.

The thread begins with the first entry: who has nothing to write pays nothing. Entries that cannot
be written are lost, which is said once.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from celery.utils.log import get_logger

from celery_graceful.history.entry import FLEET, Entry, key_of
from celery_graceful.settings import Settings
from celery_graceful.store.store import Store, StoreAway
from celery_graceful.system import native
from celery_graceful.system.log_thread import log
from celery_graceful.system.process import Slot, emptied

__all__ = ["Journal", "counting", "current", "record", "write"]

logger = get_logger(__name__)

#: Entries of one task's list.
OF_A_TASK = 100

#: Entries that are written in one step, by the thread and by who waits for it; and that may wait
#: for the thread: more are lost.
AT_ONCE, IN_ONE_STEP, MOST = 100, 500, 5000

#: Seconds that one step may take.
TIMEOUT = 1.0


class _Waiting(NamedTuple):
    store: Store
    settings: Settings
    entry: Entry


class Journal:
    """Of one worker's main process."""

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._bell: native.Doorbell = native.SILENT
        self._thread: native.Thread | None = None
        self._lock = native.Lock()
        self._ended = False
        self._lost = 0

    def add(self, store: Store, settings: Settings, entries: Sequence[Entry]) -> None:
        """Write them soon. From any thread; waits for nothing."""
        room = max(0, MOST - len(self._waiting))
        self._lost += max(0, len(entries) - room)
        self._waiting.extend(_Waiting(store, settings, entry) for entry in entries[:room])
        with self._lock:
            if self._thread is None and not self._ended:
                self._bell = native.Doorbell()
                try:
                    self._thread = native.start_thread(self._run, "graceful-history")
                except RuntimeError:  # the interpreter ends
                    self._ended = True
        self._bell.ring()

    def end(self, seconds: float) -> None:
        """The worker ends: write what waits, in up to ``seconds``."""
        with self._lock:
            self._ended = True
        self._bell.ring()
        if self._thread is not None:
            self._thread.wait(seconds)
        self._bell = native.SILENT

    def _run(self) -> None:
        while not (self._ended and not self._waiting):
            if not self._waiting:
                self._bell.wait(None)
            elif self._write():
                self._say_back()

    def _write(self) -> bool:
        """Write those at the head that go to one store; whether it took them."""
        store, settings, _ = self._waiting[0]
        some: list[Entry] = []
        while self._waiting and self._waiting[0].store is store and len(some) < AT_ONCE:
            some.append(self._waiting.popleft().entry)
        try:
            write(store, settings, some)
        except Exception as exc:  # whatever it is: nobody's task fails of it
            if not self._lost:
                text = "The history is not written, entries are lost until it is again: %s"
                log(logger, logging.WARNING, text, exc)
            self._lost += len(some)
            return False
        return True

    def _say_back(self) -> None:
        lost, self._lost = self._lost, 0
        if lost:
            log(logger, logging.WARNING, "The history is written again: %d entries are lost", lost)


#: Of the worker that this process is the main process of. A pool's child writes by itself.
current: Slot[Journal | None] = Slot("journal", lambda: None, in_fork=emptied)


#: Who counts moments, kept or not. A pool's child has others: ``timeline/tallies.py``.
counting: Slot[Callable[[Sequence[Entry]], None] | None] = Slot(
    "counting", lambda: None, in_fork=emptied
)


def record(store: Store | None, settings: Settings, *entries: Entry, at_once: bool = False) -> None:
    """Enter moments into the history, if it is kept. Raises nothing.

    In a worker's main process it waits for nothing; elsewhere (a child, a command) for Redis,
    not where that was away a moment ago.

    Args:
        store: Where; ``None`` for nowhere.
        settings: What the user set.
        entries: The moments.
        at_once: Wait for Redis in a main process, too: what is told may kill the process next.
    """
    if counting.value is not None:
        counting.value(entries)
    if store is None or not settings.history or not entries:
        return
    journal = current.value
    if journal is not None and not at_once:
        journal.add(store, settings, entries)
        return
    try:
        write(store, settings, entries)
    except StoreAway as exc:  # an outage is said by the store
        logger.debug("Not in the history: %s", exc)


def write(
    store: Store, settings: Settings, entries: Sequence[Entry], *, insist: bool = False
) -> None:
    """Write entries now, ``IN_ONE_STEP`` at a time.

    Raises:
        StoreAway: The store does not answer, or its user may not; some may have been written.
    """
    for start in range(0, len(entries), IN_ONE_STEP):
        _write(store, settings, entries[start : start + IN_ONE_STEP], insist=insist)


def _write(store: Store, settings: Settings, entries: Sequence[Entry], *, insist: bool) -> None:
    ids = dict.fromkeys(entry.id for entry in entries if entry.id)
    places = {task_id: place for place, task_id in enumerate(ids, 2)}
    ttl = int(settings.history_ttl * 1000)
    args: list[object] = [settings.history_length, OF_A_TASK, ttl]
    for entry in entries:
        args += [places.get(entry.id, 0), entry.to_json()]
    keys = [FLEET, *map(key_of, ids)]
    store.run("history", keys, args, timeout=TIMEOUT, insist=insist, quiet=True)
