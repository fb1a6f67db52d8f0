"""A plugin for pytest: makes every app graceful, where GRACEFUL says so, and keeps the outcomes."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from celery import Celery

#: What decides if several parts of a test have outcomes.
RANK = ("passed", "skipped", "failed")

_outcomes: dict[str, str] = {}


def pytest_configure(config: Any) -> None:
    if os.environ.get("GRACEFUL"):
        make_all_graceful(os.environ["GRACEFUL"])
    if os.environ.get("OWN_WORKER"):
        take_no_embedded_worker()
    if os.environ.get("TEST_BROKER"):
        wait_for_answers()


def make_all_graceful(what: str) -> None:
    """Every app from now on.

    Args:
        what: ``apps`` alone, ``all`` for tasks that name no base too, ``chords`` to track them.
    """
    from celery_graceful import Graceful

    plain = Celery.__init__

    @wraps(plain)
    def __init__(self: Celery, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        if what != "apps":
            self.add_defaults(
                {"graceful_default_task": True, "graceful_track_chords": what == "chords"}
            )
        Graceful(self)

    Celery.__init__ = __init__


def take_no_embedded_worker() -> None:
    """Their fixture gets the worker that runs beside them."""
    from celery.contrib.testing import worker

    @contextmanager
    def running(app: Celery, **_: Any) -> Any:
        yield SimpleNamespace(app=app, hostname=os.environ["OWN_WORKER"])

    worker.start_worker = running


def wait_for_answers() -> None:
    """Those of the one worker, for as long as it takes: on a busy machine more than a second."""
    from celery.app.control import Inspect

    plain = Inspect.__init__

    @wraps(plain)
    def __init__(self: Any, destination: Any = None, timeout: float = 60.0, **kwargs: Any) -> None:
        plain(self, destination, timeout, **{"limit": 1, **kwargs})

    Inspect.__init__ = __init__


def pytest_runtest_logreport(report: Any) -> None:
    if report.outcome not in RANK:  # "rerun", of a test that is run once more
        return
    name = report.nodeid
    outcome = max(report.outcome, _outcomes.get(name, "passed"), key=RANK.index)
    if report.when == "call" or outcome != "passed":
        _outcomes[name] = outcome


def pytest_sessionfinish(session: Any) -> None:
    if not hasattr(session.config, "workerinput"):  # not in xdist's workers: they report to it
        Path(os.environ["OUTCOMES"]).write_text(json.dumps(_outcomes))
