"""The `celery` command, which starts in half the time without what a worker never uses.

Celery's command line imports a shell for `celery amqp`, colours for what it prints, and the
commands of all that is installed: Flower's, with Tornado, and `celery graceful`. The demo's workers
start with all that.
"""

from __future__ import annotations

import runpy
import sys
import types

__all__ = ["CELERY"]

#: Begins a command line, in place of `celery`.
CELERY = [sys.executable, "-m", __name__]

if __name__ == "__main__":
    for name in ("flower", "psutil", "pygments"):  # as if they were not installed
        sys.modules[name] = None  # type: ignore[assignment]
    sys.modules["click_repl"] = types.SimpleNamespace(register_repl=id)  # type: ignore[assignment]
    runpy.run_module("celery", run_name="__main__", alter_sys=True)
