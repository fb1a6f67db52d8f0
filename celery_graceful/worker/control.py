"""Remote control: ``shutdown`` drains, ``quiet`` stops fetching; batches that were cancelled.

And what operators ask for (``operations/asking.py``): ``graceful_quiet``, ``graceful_resume``,
``graceful_stop``, and ``graceful_status``, by which a worker says what it holds.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from celery.worker.control import Panel, control_command, inspect_command

if TYPE_CHECKING:  # every ``celery`` command looks the commands up
    from celery_graceful.worker.drain import Drain

__all__ = ["ControlledWorker", "install"]

#: Celery's commands by which something that waits may be revoked.
REVOKING = {"revoke", "terminate", "revoke_by_stamped_headers", "terminate_by_stamped_headers"}

#: Those that look for what runs by its id.
BY_ID = {"revoke", "terminate", "query_task"}


NOT_GRACEFUL = {"error": "this worker's app is not graceful"}


class ControlledWorker(ABC):
    """A worker, as far as its commands know it.

    Attributes:
        drain: What is asked of it.
    """

    drain: Drain

    @abstractmethod
    def status(self, consumer: Any, task_id: str | None) -> dict[str, Any]:
        """Phase, and what it holds; or one task of that."""

    @abstractmethod
    def cancel(self, batches: set[str]) -> int:
        """Revoke what runs of these; how many members that are."""

    @abstractmethod
    def name_running(self) -> None:
        """All that runs can be found by its id."""

    @abstractmethod
    def drop_revoked(self) -> None:
        """What was revoked, and waits for its time, waits no more."""


def install() -> None:
    """Register the commands: in a worker, and where ``celery control`` looks them up."""
    if getattr(Panel.data.get("shutdown"), "_is_graceful", False):
        return
    plain = Panel.data["shutdown"]

    @control_command(name="shutdown")
    def shutdown(state: Any, msg: str = "Got shutdown from remote", **kwargs: Any) -> Any:
        """Drain the worker and shut it down."""
        drain = _drain(state)
        if drain is None:
            return plain(state, msg=msg, **kwargs)
        drain.request_stop("remote shutdown")
        return {"ok": f"stopping, at the latest in {drain.deadlines.grace:g} s"}

    @control_command(name="quiet")
    def quiet(state: Any, **kwargs: Any) -> Any:
        """Stop fetching; what was fetched and not started goes back, what runs goes on."""
        drain = _drain(state)
        if drain is None:
            return NOT_GRACEFUL
        drain.request_quiet("remote control")
        return {"ok": "quiet"}

    @control_command(name="graceful_quiet")
    def graceful_quiet(state: Any, **kwargs: Any) -> Any:
        """As quiet."""
        return quiet(state)

    @control_command(name="graceful_resume")
    def graceful_resume(state: Any, **kwargs: Any) -> Any:
        """Fetch again, after a quiet."""
        drain = _drain(state)
        if drain is None:
            return NOT_GRACEFUL
        resumed = drain.request_resume("remote control")
        return {"ok": "running"} if resumed else {"error": "it was asked to stop, and will"}

    @control_command(name="graceful_stop")
    def graceful_stop(state: Any, **kwargs: Any) -> Any:
        """Drain the worker and shut it down."""
        drain = _drain(state)
        if drain is None:
            return NOT_GRACEFUL
        drain.request_stop("remote control")
        return {"ok": f"stopping, at the latest in {drain.deadlines.grace:g} s"}

    @inspect_command(name="graceful_status", args=[("task_id", str)])
    def graceful_status(state: Any, task_id: Any = None, **kwargs: Any) -> Any:
        """Phase, and what it holds: what runs, and what waits for what; or one task of that."""
        worker = _worker(state)
        return NOT_GRACEFUL if worker is None else worker.status(state.consumer, task_id)

    @control_command(name="cancel_batches", args=[("batches", list)])
    def cancel_batches(state: Any, batches: Any = (), **kwargs: Any) -> Any:
        """Revoke what runs of batches that were cancelled; ``Batch.cancel`` asks for it."""
        worker = _worker(state)
        return NOT_GRACEFUL if worker is None else {"ok": f"{worker.cancel({*batches})} members"}

    for name in BY_ID & Panel.data.keys():
        Panel.data[name] = _by_id(Panel.data[name])
    for name in REVOKING & Panel.data.keys():
        Panel.data[name] = _and_drop(Panel.data[name])
    shutdown._is_graceful = True
    _be_in_help()


def _by_id(command: Callable[..., Any]) -> Callable[..., Any]:
    """Celery's command, which finds all that runs."""

    @wraps(command)
    def by_id(state: Any, *args: Any, **kwargs: Any) -> Any:
        worker = _worker(state)
        if worker is not None:
            worker.name_running()
        return command(state, *args, **kwargs)

    return by_id


def _and_drop(revoke: Callable[..., Any]) -> Callable[..., Any]:
    """Celery's command, and members that wait for their time do not wait for that any more."""

    @wraps(revoke)
    def and_drop(state: Any, *args: Any, **kwargs: Any) -> Any:
        answer = revoke(state, *args, **kwargs)
        worker = _worker(state)
        if worker is not None:
            worker.drop_revoked()
        return answer

    return and_drop


def _worker(state: Any) -> ControlledWorker | None:
    worker = getattr(state.consumer.controller, "graceful", None)
    # A stand-in for a consumer has anything.
    return worker if isinstance(worker, ControlledWorker) else None


def _drain(state: Any) -> Drain | None:
    worker = _worker(state)
    return None if worker is None else worker.drain


def _be_in_help() -> None:
    """``celery control --list`` names all commands, ``--help`` none."""
    programs = sys.modules.get("celery.bin.control")
    for kind in ("control", "inspect"):
        ours = [
            f"{name}: {meta.help}"
            for name, meta in sorted(Panel.meta.items())
            if meta.type == kind and Panel.data[name].__module__ == __name__
        ]
        if programs is not None and ours:
            getattr(programs, kind).epilog = "\b\nOf celery_graceful:\n  " + "\n  ".join(ours)
