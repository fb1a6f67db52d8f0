"""What the demo's workers tell the demo: one line of JSON on their error output for each fact."""

from __future__ import annotations

import io
import json
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Fact", "parse", "tell"]

_MARK = "@fact "

# Not os.write: eventlet's own lets only one greenlet write at a time.
_errors = io.FileIO(2, "w", closefd=False)


@dataclass(frozen=True)
class Fact:
    """Something that happened to a task.

    Attributes:
        what: ``received``, ``started``, ``resumed``, ``interrupted``, ``finished`` or ``failed``.
        task: Id of the task.
        worker: Name of the worker.
        at: When, on the monotonic clock, which all processes of a machine share.
        detail: More, for a person.
    """

    what: str
    task: str
    worker: str
    at: float
    detail: str = ""


def tell(what: str, task: str, detail: str = "") -> None:
    """Write a fact, in a worker: in one write, so that no other process can tear it."""
    fact = Fact(what, task, os.environ["DEMO_WORKER"], time.monotonic(), detail)
    _errors.write(f"{_MARK}{json.dumps(asdict(fact))}\n".encode())


def parse(line: str) -> Fact | None:
    """The fact that a line of a worker's output holds, if it holds one."""
    if not line.startswith(_MARK):
        return None
    fields: dict[str, Any] = json.loads(line[len(_MARK) :])
    return Fact(**fields)
