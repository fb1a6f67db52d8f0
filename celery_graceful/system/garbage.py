"""Garbage collection, which need not look at what a worker has from its start on."""

from __future__ import annotations

import atexit
import gc

from celery_graceful.system import native

__all__ = ["freeze_once"]


def freeze_once() -> None:
    """Before tasks run: what is there is looked at by no collection any more.

    Each full one would look at all of it, and tasks that wait or run make many of those. It would
    write into it as well, and so make a copy of each of its pages in each process: before the first
    fork this saves a third of what a child would have of its own.

    Once: later there may be garbage, which would be kept with it. Not in a program that is
    something else, and has its worker in a thread: it may wait for objects to be gone. At the
    interpreter's end all of it is taken apart as ever.
    """
    if native.in_main_thread() and not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
        atexit.register(gc.unfreeze)
