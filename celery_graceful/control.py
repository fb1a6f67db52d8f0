"""Remote control: ``shutdown`` drains, ``quiet`` stops fetching."""

from __future__ import annotations

from typing import Any

from celery.worker.control import Panel, control_command

__all__ = ["install"]


def install() -> None:
    """Register the commands; in a worker."""
    if getattr(Panel.data.get("shutdown"), "_is_graceful", False):
        return
    plain = Panel.data["shutdown"]

    @control_command(name="shutdown")
    def shutdown(state: Any, msg: str = "Got shutdown from remote", **kwargs: Any) -> Any:
        """Drain the worker and shut it down."""
        drain = getattr(state.consumer.controller, "graceful", None)
        if drain is None:
            return plain(state, msg=msg, **kwargs)
        drain.request_stop("remote shutdown")
        return {"ok": f"stopping, at the latest in {drain.deadlines.grace:g} s"}

    @control_command(name="quiet")
    def quiet(state: Any, **kwargs: Any) -> Any:
        """Stop fetching; what was fetched and not started goes back."""
        state.consumer.controller.graceful.request_quiet("remote control")
        return {"ok": "quiet"}

    shutdown._is_graceful = True
