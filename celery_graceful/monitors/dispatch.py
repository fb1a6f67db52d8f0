"""Who reports, and how a report gets there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

from celery_graceful.exceptions import SettingsError
from celery_graceful.monitors.check_in import CheckIn
from celery_graceful.monitors.outbox import Outbox
from celery_graceful.monitors.report import IN_PROGRESS, Report, Reporter
from celery_graceful.monitors.report_order import Endings, wait_for_death
from celery_graceful.settings import Settings
from celery_graceful.system.loaded import loaded
from celery_graceful.timeline import worker_state

__all__ = ["Dispatch"]

#: Seconds that the report of a beginning may wait for that of the end: both are sent in one go, and
#: the store is asked once.
TOGETHER = 0.02

#: A method of a reporter.
Tell = Callable[[Report], None]


class Dispatch:
    """Hands reports to all reporters of an app, each with an outbox of its own.

    Args:
        app: The Celery app.
        settings: Those of the app.
    """

    def __init__(self, app: Any, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._outboxes: dict[str, tuple[Any, Outbox]] = {}
        self._endings = Endings()
        custom = {*(settings.monitor_reporters or ())} - {*_BUILT_IN}
        #: All that may report, in the same order in each process.
        self.known = [*_BUILT_IN, *sorted(custom)]

    def start(self, check_in: CheckIn) -> None:
        """The run begins or goes on, in this process."""
        check_in.begins()
        self._endings.begins(check_in)
        made = check_in.report(IN_PROGRESS)
        self._post("start", lambda tell: tell(check_in.complete(made, begins=True)), after=TOGETHER)

    def heartbeat(self, check_in: CheckIn) -> None:
        """The run is still at work."""
        made = check_in.report(IN_PROGRESS)

        def send(tell: Tell) -> None:
            with self._endings.beat(check_in) as may:
                if may:
                    tell(check_in.complete(made))

        self._post("heartbeat", send, skippable=True)

    def finish(
        self, check_in: CheckIn, status: str, text: str = "", *, after: int | None = None
    ) -> None:
        """The run has ended.

        Args:
            check_in: Its check-in.
            status: ``"ok"`` or ``"error"``.
            text: For people.
            after: Id of a process that may still report of the run, and is on its way out.
        """
        check_in.ends()
        self._close(check_in, status, text, after=after, then=check_in.forget)

    def goes_on(self, check_in: CheckIn, text: str, timeout: float = 1.0) -> None:
        """The run was interrupted, or waits for its next try.

        Args:
            check_in: Its check-in.
            text: For people.
            timeout: Seconds that the store may take, where the check-in is closed.
        """
        if check_in.on_interrupt is None or text == "retry":
            made = check_in.report(IN_PROGRESS, text)
            self._post("log", lambda tell: tell(check_in.complete(made)), skippable=True)
        else:
            check_in.close_early(timeout)
            self._close(check_in, check_in.on_interrupt, text)

    def _close(
        self,
        check_in: CheckIn,
        status: str,
        text: str,
        *,
        after: int | None = None,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        made = check_in.report(status, text)
        self._endings.ends(check_in)

        def send(tell: Tell) -> None:
            self._endings.wait_for_beats(self._settings.monitor_timeout)
            if after not in (None, os.getpid()):
                wait_for_death(after, self._settings.monitor_timeout)
            tell(check_in.complete(made))
            then()

        self._post("finish", send)

    def _post(
        self,
        what: str,
        send: Callable[[Tell], None],
        *,
        skippable: bool = False,
        after: float = 0.0,
    ) -> None:
        """Have ``send`` call, in its own time, what each reporter has for ``what``."""
        for reporter, outbox in self._reporters():
            tell = getattr(reporter, what, None)
            if tell is not None:
                if worker_state.tallies() is not None:
                    tell = partial(self._tell, tell, outbox.name)
                outbox.put(partial(send, tell), skippable=skippable, after=after)

    def _tell(self, tell: Tell, name: str, report: Report) -> None:
        """Tell, and count it."""
        tell(report)
        tallies = worker_state.tallies()
        if tallies is not None and name in self.known:
            tallies.add_check_in(self.known.index(name), report.status)

    def wait(self, timeout: float) -> None:
        """Wait until all reports have been sent, but not for a server that is away."""
        end = time.monotonic() + timeout
        for _, outbox in list(self._outboxes.values()):
            outbox.flush(max(0.0, end - time.monotonic()))

    def names(self) -> Iterable[str]:
        """Who reports.

        Raises:
            SettingsError: A reporter is not known.
        """
        names = self._settings.monitor_reporters
        if names is not None:
            for name in names:
                if name not in _BUILT_IN and name not in _entry_points():
                    known = ", ".join(sorted({*_BUILT_IN, *_entry_points()}))
                    raise SettingsError(
                        "graceful_monitor_reporters",
                        name,
                        f"there is none of that name, of {known}",
                    )
            return names
        found = ["sentry"] if _sentry_is_active() else []
        return found + (["healthchecks"] if self._settings.healthchecks_url else [])

    def _reporters(self) -> list[tuple[Any, Outbox]]:
        names = self.names()
        for name in names:
            if name not in self._outboxes:
                # One step: threads may meet here, and a fork must not find a lock.
                self._outboxes.setdefault(name, (self._make(name), Outbox(name)))
        return [self._outboxes[name] for name in names]

    def _make(self, name: str) -> Reporter:
        timeout = self._settings.monitor_timeout
        if name == "sentry":
            from celery_graceful.monitors.sentry import SentryReporter

            return SentryReporter(timeout)
        if name == "healthchecks":
            from celery_graceful.monitors.healthchecks import HealthchecksReporter

            return HealthchecksReporter(self._settings.healthchecks_url, timeout)
        reporter: Reporter = _entry_points()[name].load()(self._app)
        return reporter


_BUILT_IN = ("healthchecks", "sentry")


@cache
def _entry_points() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group="celery_graceful.reporters")}


def _sentry_is_active() -> bool:
    get_client = loaded("sentry_sdk", "get_client")
    if get_client is None:
        return False
    client = get_client()
    return bool(client.is_active() and client.options.get("dsn"))
