"""Check-ins for Healthchecks, hosted or self-hosted: pings by HTTP."""

from __future__ import annotations

import urllib.error
import urllib.parse
import urllib.request

from celery_graceful.monitors.report import Dropped, Report

__all__ = ["HealthchecksReporter"]

#: Bytes of a ping's body that a server keeps.
BODY = 10_000


class HealthchecksReporter:
    """Pings ``<url>/<slug>``, or the URL that the monitor names.

    Args:
        url: With the ping key, such as ``https://hc-ping.com/<ping key>``; ``None`` when all
            monitors name their own.
        timeout: Seconds for one ping.
    """

    name = "healthchecks"

    def __init__(self, url: str | None, timeout: float) -> None:
        self._url = url
        self._timeout = timeout

    def start(self, report: Report) -> None:
        self._ping(report, "/start")

    def heartbeat(self, report: Report) -> None:
        self._ping(report, "/start")  # starts its clock again

    def finish(self, report: Report) -> None:
        self._ping(report, "" if report.status == "ok" else "/fail")

    def log(self, report: Report) -> None:
        self._ping(report, "/log")

    def _ping(self, report: Report, what: str) -> None:
        query = {"rid": report.check_in_id}
        if report.monitor.ping_url is not None:
            url = report.monitor.ping_url
        elif self._url is not None:
            url = f"{self._url.rstrip('/')}/{report.monitor.slug}"
            query["create"] = "1"
        else:
            raise Dropped(f"monitor {report.slug!r} has no ping_url")
        took = "" if report.duration is None else f", after {report.duration:.1f} s"
        body = f"{report.status}{took}: {report.text}".encode()[:BODY]
        request = urllib.request.Request(
            f"{url.rstrip('/')}{what}?{urllib.parse.urlencode(query)}", body, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                answer = response.read(100).decode("utf-8", "replace").strip()
        except urllib.error.HTTPError as exc:
            exc.close()
            if exc.code >= 500:
                raise
            raise Dropped(f"it answered {exc.code} {exc.reason}") from None
        if answer.startswith("OK ("):  # "OK (not found)", "OK (rate limited)"
            raise Dropped(f"it answered {answer!r}")
