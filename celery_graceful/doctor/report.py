"""All checks, made, and what came of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from celery_graceful.doctor import environment, grace, monitors, rabbitmq, redis, tasks
from celery_graceful.doctor.examination import CannotCheck, Examination
from celery_graceful.doctor.findings import Check, Finding, Severity
from celery_graceful.store.store import StoreAway, StoreRefused
from celery_graceful.system.describe import describe
from celery_graceful.timeline.grace_period import Deadlines

__all__ = ["CHECKS", "Report", "examine"]

logger = logging.getLogger(__name__)

#: The subjects, in the order in which they are printed.
CHECKS: tuple[Check, ...] = (
    *grace.CHECKS,
    *redis.CHECKS,
    *rabbitmq.CHECKS,
    *tasks.CHECKS,
    *monitors.CHECKS,
    *environment.CHECKS,
)


@dataclass(frozen=True)
class Report:
    """What an examination has found.

    Attributes:
        findings: The worst first.
        unchecked: What could not be checked, and why.
        deadlines: Of a worker here; ``None`` if they cannot be computed.
        misses_a_server: One that had to be asked did not answer: more may be wrong.
        has_failed: So may it where a check could not be made, for a reason that it does not know.
    """

    findings: tuple[Finding, ...]
    unchecked: dict[str, str]
    deadlines: Deadlines | None
    misses_a_server: bool
    has_failed: bool = False

    @property
    def has_errors(self) -> bool:
        """Whether one of the findings is an error."""
        return any(one.severity is Severity.ERROR for one in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        counts = {s.value: sum(f.severity is s for f in self.findings) for s in Severity}
        d = self.deadlines
        return {
            "grace": d and {"seconds": d.grace, "soft": d.soft, "hard": d.hard, "source": d.source},
            "findings": [one.to_dict() for one in self.findings],
            "unchecked": [{"what": what, "why": why} for what, why in self.unchecked.items()],
            "counts": counts,
        }


def examine(exam: Examination, checks: tuple[Check, ...] = CHECKS) -> Report:
    """Make all checks. What cannot be checked keeps nothing else from being checked."""
    findings = [finding for check in checks for finding in _found(exam, check)]
    findings.sort(key=lambda one: list(Severity).index(one.severity))
    try:
        deadlines = exam.deadlines
    except CannotCheck:
        deadlines = None
    misses_a_server = exam.misses_a_server  # first: it may have more to enter as unchecked
    return Report(tuple(findings), exam.unchecked, deadlines, misses_a_server, exam.has_failed)


def _found(exam: Examination, check: Check) -> Iterator[Finding]:
    try:
        for one in check.find(exam):
            severity = one.severity or check.severity
            yield Finding(check.code, severity, one.thing, one.value, one.why, one.mend)
    except CannotCheck as exc:
        exam.unchecked.setdefault(exc.what, exc.why)
    except Exception as exc:
        logger.debug("%s", check.code, exc_info=True)
        if isinstance(exc, StoreAway) and not isinstance(exc, StoreRefused):
            exam.could_not_reach(check.code, describe(exc))
        else:
            exam.unchecked[check.code] = describe(exc)
            exam.has_failed = exam.has_failed or not isinstance(exc, StoreRefused)
