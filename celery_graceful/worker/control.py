"""Remote control: ``shutdown`` drains, ``quiet`` stops fetching; batches that were cancelled."""

from __future__ import annotations

import sys
from typing import Any

from celery.worker.control import Panel, control_command

from celery_graceful.worker.cancelling import cancel

__all__ = ["install"]


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
            return {"error": "this worker's app is not graceful"}
        drain.request_quiet("remote control")
        return {"ok": "quiet"}

    @control_command(name="cancel_batches", args=[("batches", list)])
    def cancel_batches(state: Any, batches: Any = (), **kwargs: Any) -> Any:
        """Revoke what runs of batches that were cancelled; ``Batch.cancel`` asks for it."""
        parts = getattr(state.consumer.controller, "graceful", None)
        if parts is None:
            return {"error": "this worker's app is not graceful"}
        return {"ok": f"{cancel(parts.ledger, state.consumer.pool, set(batches))} members"}

    shutdown._is_graceful = True
    _be_in_help()


def _drain(state: Any) -> Any:
    return getattr(getattr(state.consumer.controller, "graceful", None), "drain", None)


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
