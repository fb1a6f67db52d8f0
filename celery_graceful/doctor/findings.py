"""What a check is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from celery_graceful.doctor.examination import Examination

__all__ = ["Check", "Finding", "Severity", "Trouble"]

#: Where each code has a section.
DOCS = "docs/doctor.md"


class Severity(str, Enum):
    """How bad a finding is.

    Attributes:
        ERROR: Work is lost, cut off or done twice, or a worker does not start.
        WARNING: It goes wrong under a condition, or something that is asked for does not act.
        NOTE: Good to know; nothing need be done.
    """

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Trouble:
    """What a check has found.

    Attributes:
        thing: What it is about, as people write it: a setting, a task, a server.
        value: What that is.
        why: What comes of it.
        mend: What to write instead.
        severity: Where it is not that of the check.
    """

    thing: str
    value: Any
    why: str
    mend: str
    severity: Severity | None = None


@dataclass(frozen=True)
class Check:
    """One row of the table of a subject.

    Attributes:
        code: Such as ``CG101``. Never given to another check.
        severity: Of what it finds, unless that says otherwise.
        find: Looks. What it cannot ask it tells by `Examination.unchecked`, or raises
            ``CannotCheck``.
    """

    code: str
    severity: Severity
    find: Callable[[Examination], Iterable[Trouble]]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: Such as ``CG101``.
        severity: How bad it is.
        thing: What it is about.
        value: What that is.
        why: What comes of it.
        mend: What to write instead.
    """

    code: str
    severity: Severity
    thing: str
    value: Any
    why: str
    mend: str

    @property
    def link(self) -> str:
        """Its section in the docs."""
        return f"{DOCS}#{self.code.lower()}"

    def to_dict(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        plain = isinstance(self.value, (str, int, float, type(None)))
        return {
            "code": self.code,
            "severity": self.severity.value,
            "thing": self.thing,
            "value": self.value if plain else repr(self.value),
            "why": self.why,
            "mend": self.mend,
            "link": self.link,
        }
