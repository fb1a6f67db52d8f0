"""A child of billiard's ends with its parent, whatever ends that, and whenever."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

from billiard import get_start_method
from billiard.process import current_process

__all__ = ["end_with_parent", "is_orphan"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(signum: int) -> None:
    """Have the kernel send that signal when the parent is gone; at once if it is already.

    Celery asks the kernel as well, for the children of a pool. But that says nothing of a parent
    that was gone before it was asked (``prctl(2)``), and Celery asks through the name of glibc,
    which is not there with musl (Alpine).

    Args:
        signum: A signal that ends this process.
    """
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # a Python that is linked statically
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
    if is_orphan():
        os.kill(os.getpid(), signum)


def is_orphan() -> bool:
    """Whether the process that has started this one is gone.

    Never of one that billiard's fork server has started: its parent is that server.
    """
    started_by = current_process()._parent_pid
    return started_by not in (None, os.getppid()) and get_start_method() != "forkserver"
