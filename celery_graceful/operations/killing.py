"""The end of a worker by SIGKILL: of the process that it is, on this machine, and of no other."""

from __future__ import annotations

import os
import select
import signal

from celery_graceful.operations.records import Worker
from celery_graceful.system.process_identity import identity_of, is_of_here

__all__ = ["CannotKill", "check", "kill"]

#: Seconds that the kernel gets to end it.
PATIENCE = 10.0


class CannotKill(Exception):
    """A worker cannot be killed from here."""


def check(worker: Worker) -> None:
    """Look whether it can be killed from here.

    Raises:
        CannotKill: Why not, and what to do instead.
    """
    if not worker.process:
        raise CannotKill(
            f"{worker.name} does not say which process it is. On {worker.host}: "
            f"kill -9 {worker.pid}"
        )
    if not is_of_here(worker.process):
        raise CannotKill(
            f"{worker.name} runs on {worker.host}, another machine or container: run the same there"
        )
    if identity_of(worker.pid) != worker.process:
        raise CannotKill(f"process {worker.pid} is not {worker.name} any more: it has ended")
    if worker.pid == 1:
        raise CannotKill(
            f"{worker.name} is process 1 of this container, to which SIGKILL does nothing from "
            "inside: kill the container"
        )


def kill(worker: Worker) -> None:
    """Kill its main process. On Linux the children of a pool end with that: Celery has seen to it.

    Raises:
        CannotKill: Why not. Nothing was done.
    """
    # A descriptor stands for one process, whoever gets its number next.
    try:
        process = os.pidfd_open(worker.pid)
    except (AttributeError, OSError) as exc:
        check(worker)
        raise CannotKill(f"this system names no process for sure: kill -9 {worker.pid}") from exc
    try:
        check(worker)
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [], PATIENCE)
    except PermissionError as exc:
        raise CannotKill(f"only its user, or root, may kill process {worker.pid}") from exc
    except ProcessLookupError as exc:
        raise CannotKill(f"{worker.name} has just ended") from exc
    finally:
        os.close(process)
