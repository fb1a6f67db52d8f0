"""The `celery` command, which starts in half the time without what a worker never uses.

Celery's command line imports a shell for `celery amqp`, colours for what it prints, and the
commands of all that is installed: Flower's, with Tornado, and `celery graceful`. The demo's workers
start with all that.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
import types

__all__ = ["CELERY", "PATIENT", "SLOW_WHILE", "leave_out", "run"]

#: While the file of that name is there, a row of an example takes its time; then it takes none.
SLOW_WHILE = "SLOW_WHILE"

#: Whoever has that in the environment has patience with servers, as the process of a test has.
PATIENT = "HAS_PATIENCE"

#: Begins a command line, in place of `celery`.
CELERY = [sys.executable, "-m", __name__]


def leave_out() -> None:
    """What Celery's command line imports and a worker never uses."""
    for name in ("flower", "psutil", "pygments"):  # as if they were not installed
        sys.modules[name] = None  # type: ignore[assignment]
    sys.modules["click_repl"] = types.SimpleNamespace(register_repl=id)  # type: ignore[assignment]


def run() -> None:
    """The `celery` command, with the arguments of this process."""
    if SLOW_WHILE in os.environ:
        path, sleep = os.environ[SLOW_WHILE], time.sleep
        time.sleep = lambda s: sleep(0 if s == 0.05 and not os.path.exists(path) else s)
    if PATIENT in os.environ:
        from tests.support.patience import has_patience

        has_patience(types.SimpleNamespace(setattr=setattr))  # type: ignore[arg-type]
    runpy.run_module("celery", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    leave_out()
    run()
