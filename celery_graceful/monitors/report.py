"""What is reported, and who takes it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from celery_graceful.monitors.monitor import Monitor

__all__ = ["IN_PROGRESS", "Dropped", "Report", "Reporter"]

IN_PROGRESS = "in_progress"


class Dropped(Exception):
    """Raised by a reporter: this report will never get through, the message says why."""


@dataclass(frozen=True)
class Report:
    """One check-in, as it is sent.

    Attributes:
        slug: Of the monitor, as its server writes it.
        check_in_id: A UUID with dashes, the same for all reports of one check-in.
        status: ``"in_progress"``, ``"ok"`` or ``"error"``.
        duration: Seconds since the run began; ``None`` while it goes on.
        monitor: The monitor.
        config: What Sentry's server is told of the monitor, if anything.
        run: Id of the run: of the task, most often.
        text: For people, one line.
        at: When it was made, ``time.time()``.
    """

    slug: str
    check_in_id: str
    status: str
    duration: float | None
    monitor: Monitor
    config: Mapping[str, Any] | None
    run: str
    text: str = ""
    at: float = field(default_factory=time.time)


class Reporter(Protocol):
    """Sends check-ins to one server. Called in a thread of its own, one call at a time.

    A call may take as long as ``graceful_monitor_timeout`` says, and raises what goes wrong:
    ``Dropped`` where there is no use in trying again, anything else while the server is away.
    A ``log`` method, if there is one, gets what closes nothing: retries and interruptions.
    """

    name: str

    def start(self, report: Report) -> None:
        """The run has begun, or goes on."""

    def heartbeat(self, report: Report) -> None:
        """The run is still at work."""

    def finish(self, report: Report) -> None:
        """The run has ended; ``report.status`` says how."""
